"""One harness for every figure of docs/explanation/benchmarks.md: ``python -m benchmarks``."""
