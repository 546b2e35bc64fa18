"""Benchmarks, through the public worker. Run all of them with ``make bench``."""
