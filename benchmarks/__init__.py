"""Benchmarks, peers side by side: `python -m benchmarks [section ...]`."""
