"""One training, of one run or a population: prepared, run by Lightning, measured, kept on disk and recorded."""
