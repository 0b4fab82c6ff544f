"""`dto run` as a process on a disturbed run folder: a resume ends with the undisturbed bytes.

Damaged files, full disks and second drivers have tests of their own in `tests/run` (`test_driver`, `test_durability`,
`test_directory`, `test_s3_runs`); `jobs/chaos.py` plays the other scenarios.
"""

from __future__ import annotations

import sys

import pytest

from tests.chaos.arena import Arena
from tests.chaos.play import play

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds its processes in /proc"),
]


@pytest.fixture(scope="module")
def arena(tiny, finished, tmp_path_factory) -> Arena:
    """Runs in one process, without Ray: what is tested here does not depend on workers."""
    return Arena(tiny.manifest, tmp_path_factory.mktemp("chaos"), finished, workers=0)


@pytest.mark.parametrize("scenario", ["clock_set_back", "poison_shard"])
def test_a_disturbed_run_ends_as_an_undisturbed_one(arena, scenario):
    outcome = play(scenario, arena)
    assert (outcome.complaints, outcome.skipped) == ((), "")


def test_drivers_killed_at_random_moments_change_nothing(arena):
    outcome = play("random_driver_kills", arena, kills=3, seed=7)

    assert (outcome.complaints, outcome.kills) == ((), 3)
