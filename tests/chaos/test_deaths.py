"""Ray itself dies under a run: `dto run`, started again, ends with the undisturbed bytes.

`test_ray_pool` has the same for workers, drivers, nodes and images that kill from inside; `jobs/chaos.py` kills
workers, drivers and raylets at random moments.
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
