"""Tools for the maintenance of the project: benchmarks, fault campaign, and comparison of two versions."""
