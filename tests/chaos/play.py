"""Plays scenarios: disturb, resume until done, compare with the undisturbed run; and the table of what came of it.

Knows the list of all scenarios; what each does stands in its own module. Seconds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.chaos import deaths, disk, poison
from tests.chaos.arena import Arena, ChaosError
from tests.chaos.disk import NotPossible
from tests.chaos.disturbed_run import DisturbedRun

Scenario = Callable[[DisturbedRun], None]
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        deaths.publisher_killed,
        deaths.raylet_killed,
        poison.poison_image,
        poison.poison_shard,
        poison.two_drivers,
        poison.driver_stopped,
        poison.clock_set_back,
        disk.disk_full,
        disk.write_cut_short,
        disk.folder_read_only,
        deaths.random_driver_kills,
        deaths.random_kills,
    )
}
RANDOM = ("random_driver_kills", "random_kills")  # they kill as often as they are told


@dataclass(frozen=True)
class Outcome:
    """What came of one scenario."""

    scenario: str
    kills: int  # processes (or nodes) that were sent a signal; poison counts none
    resumes: int  # starts after the disturbed one
    seconds: float
    complaints: tuple[str, ...]  # empty = identical to the undisturbed run, in every respect
    note: str = ""
    skipped: str = ""  # why it could not be played here

    @property
    def verdict(self) -> str:
        return "skipped" if self.skipped else "no" if self.complaints else "yes"

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        return {**dataclasses.asdict(self), "identical": self.verdict}


def play(
    name: str,
    arena: Arena,
    resume_workers: int | None = None,
    kills: int = 0,
    seed: int = 0,
    until: float = float("inf"),
) -> Outcome:
    """Play one scenario of `SCENARIOS`.

    Args:
        resume_workers: Ray workers of the resumes, 0 = without Ray; None = the arena's.
        kills, seed, until: of those in `RANDOM`; no kill begins later than `until` [s, monotonic clock].
    """
    started = time.monotonic()
    skipped = ""
    with DisturbedRun(arena, name, seed, kills, until) as run:
        if resume_workers is not None:
            run.resume_workers = resume_workers
        try:
            SCENARIOS[name](run)
            run.resume()
            run.judge()
        except NotPossible as reason:
            skipped = str(reason)
        except ChaosError as error:
            run.complaints.append(str(error))
    seconds = round(time.monotonic() - started, 1)
    return Outcome(name, run.kills, run.resumes, seconds, tuple(run.complaints), run.note, skipped)


def as_table(outcomes: Iterable[Outcome], header: bool = True) -> str:
    """Text for a terminal: one line a scenario, complaints below it."""
    lines = [f"{'scenario':<20} {'kills':>5} {'resumes':>7} {'seconds':>8}  identical"] if header else []
    for outcome in outcomes:
        note = f" ({outcome.skipped or outcome.note})" if outcome.skipped or outcome.note else ""
        numbers = f"{outcome.kills:>5} {outcome.resumes:>7} {outcome.seconds:>8.1f}"
        lines.append(f"{outcome.scenario:<20} {numbers}  {outcome.verdict}{note}")
        lines += [f"    {complaint}" for complaint in outcome.complaints]
    return "\n".join(lines)
