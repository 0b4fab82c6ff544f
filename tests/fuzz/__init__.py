"""Random damage to every kind of file a stranger may hand in; `python -m tests.fuzz` explores, `tests/slow` repeats."""
