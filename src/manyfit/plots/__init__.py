"""Pictures of a run, of a sweep, and of a claim."""
