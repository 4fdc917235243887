"""Robustness of packers and readers to faulty data, beside other tools (docs/benchmarks.md)."""
