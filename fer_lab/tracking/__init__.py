"""Runs, registry and ledger; the only importers of mlflow."""
