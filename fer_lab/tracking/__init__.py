"""Runs, the registry and the ledger. The only package that imports mlflow, and only inside functions."""
