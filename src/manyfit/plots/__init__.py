"""The look of all pictures, and that of a run: its overfitting curve."""
