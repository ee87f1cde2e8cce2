"""Metrics, statistics, latency, evaluation, comparison, report."""
