"""The study, its space, its leases and the confirmation; the only importer of optuna."""
