"""Wall seconds per named stage, summed."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageClock:
    """Adds up wall seconds per stage. `synchronize`: wait for the GPU before and after each, so that its work
    counts."""

    def __init__(self, synchronize: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._synchronize = synchronize and torch.cuda.is_available()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            with self._lock:  # several threads share a stage
                self.seconds[stage] += time.perf_counter() - start

    def add(self, other: StageClock) -> None:
        """Add the seconds of another clock."""
        with self._lock:
            for stage, seconds in other.seconds.items():
                self.seconds[stage] += seconds

    def _wait(self) -> None:
        if self._synchronize:
            torch.cuda.synchronize()
