"""Benchmarks that anyone can repeat: figures and ratios from one run, on scenes made for it."""
