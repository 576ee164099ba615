"""Figures, intervals, plots and reports."""
