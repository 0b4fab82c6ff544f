"""Runs that are disturbed on purpose: real processes, real signals, real full disks, and a judge who compares bytes.

Uses `dto run` from outside, as a user would (a process, its exit code, the files of the run's folder), and imports
nothing of `dto_pipeline.run`, so that the scenarios hold for a rewritten engine too. `tests/run` plays a few of them,
`jobs/chaos.py` all of them, with random kills.
"""
