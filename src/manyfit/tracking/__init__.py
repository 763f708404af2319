"""Runs on their way to MLflow: a journal on disk first, so that nothing is lost."""
