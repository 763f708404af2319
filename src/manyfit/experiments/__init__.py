"""An assertion, the runs that put it to the test, and the verdict."""
