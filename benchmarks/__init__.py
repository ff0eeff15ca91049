"""Compares the registry with the stores that people would use instead. `python -m benchmarks --help`."""
