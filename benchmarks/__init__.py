"""Measures the registry against what people would use instead. `python -m benchmarks --help`."""
