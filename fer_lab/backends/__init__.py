"""Bundles and the runtimes that run them: one file per runtime behind a two-method Protocol."""
