"""Processes of a run that die or stop, by real signals: `dto run`, started again, ends with the undisturbed bytes.

`test_ray_pool` has the same for single workers, drivers and images that kill from inside, `test_ray_cluster` for nodes;
here everything goes through the command line.
"""

from __future__ import annotations

import sys

import pytest

from tests.chaos.arena import Arena, build_arena
from tests.chaos.play import play

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds its processes in /proc"),
]


@pytest.fixture(scope="module")
def arena(tiny, tmp_path_factory) -> Arena:
    return build_arena(tiny.manifest, tmp_path_factory.mktemp("chaos"))


def test_a_run_whose_raylet_is_killed_ends_as_an_undisturbed_one(arena):
    assert play("raylet_killed", arena, resume_workers=0).complaints == ()


@pytest.mark.parametrize("scenario", ["random_kills", "random_driver_kills"])
def test_kills_at_random_moments_change_nothing(arena, scenario):
    outcome = play(scenario, arena, resume_workers=0, kills=3, seed=7)

    assert outcome.complaints == ()
    assert outcome.kills >= 3  # a deadly image may add some
