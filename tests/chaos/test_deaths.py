"""Processes of a run that die or stop, by real signals: `dto run`, started again, ends with the undisturbed bytes.

`test_ray_pool` has the same for single workers, drivers and images that kill from inside, `test_ray_cluster` for nodes;
here everything goes through the command line, and `jobs/chaos.py` kills workers and raylets at random moments too.
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
    return Arena(tiny.manifest, tmp_path_factory.mktemp("chaos"), finished)


def test_a_run_whose_raylet_is_killed_ends_as_an_undisturbed_one(arena):
    assert play("raylet_killed", arena, resume_workers=0).complaints == ()


def test_drivers_killed_at_random_moments_change_nothing(arena):
    outcome = play("random_driver_kills", arena, resume_workers=0, kills=3, seed=7)

    assert (outcome.complaints, outcome.kills) == ((), 3)
