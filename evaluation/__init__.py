"""Metrics, intervals, plots and reports."""
