"""Benchmarks: a file a suite, one runner, pass@k and reports. Importing it imports no torch."""
