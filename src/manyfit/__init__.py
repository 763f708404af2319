"""Fit many networks as one, and watch each of them overfit."""

import os

# Before torch loads MKL: it then picks its kernels by shape alone, not by the alignment of pointers, so that a
# run's curve does not depend on who trains beside it (NOTES.md, bit-equality).
os.environ.setdefault("MKL_CBWR", "AUTO")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
