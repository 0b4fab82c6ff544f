"""Processes of a run that die or stop, by real signals: `dto run`, started again, ends with the undisturbed bytes.

`test_ray_pool` has the same for single workers and drivers from inside, `test_suspects` for images that kill; here
everything goes through the command line.
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


@pytest.mark.parametrize("scenario", ["raylet_killed", "node_killed", "worker_stopped"])
def test_a_disturbed_run_ends_as_an_undisturbed_one(arena, scenario):
    assert play(scenario, arena, resume_workers=0).complaints == ()


@pytest.mark.parametrize("scenario", ["random_kills", "random_driver_kills"])
def test_kills_at_random_moments_change_nothing(arena, scenario):
    outcome = play(scenario, arena, resume_workers=0, kills=3, seed=7)

    assert outcome.complaints == ()
    assert outcome.kills >= 3  # a deadly image may add some
