"""Runs that are disturbed on purpose: real processes, real signals, real full disks, and a judge who compares bytes.

Lives in the bench room because it does what a benchmark does: it works the pipeline from outside and measures what
comes of it. It uses `dto run` as a user would (a process, its exit code, the files of the run's folder) and imports
nothing of the run room, so an engine rewritten from scratch would be held to the same scenarios. `tests/run` plays a
short set of them, `jobs/chaos.py` all of them with random kills.
"""
