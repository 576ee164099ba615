"""What maintains the project: benchmarks, the fault campaign, the comparison of two versions."""
