"""Fault campaign: kill the scripts, make their disk fail, give them malformed files, and check the results."""
