"""`dto run` as a process on a disturbed run folder: whatever was damaged, a resume ends with the undisturbed bytes."""

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
    """Runs in one process, without Ray: what is tested here does not depend on workers."""
    return build_arena(tiny.manifest, tmp_path_factory.mktemp("chaos"), workers=0)


@pytest.mark.parametrize(
    "scenario",
    [
        "receipt_truncated",
        "label_truncated",
        "labels_swapped",
        "two_drivers",
        "clock_set_back",
        "poison_shard",
        "folder_read_only",
    ],
)
def test_a_disturbed_run_ends_as_an_undisturbed_one(arena, scenario):
    outcome = play(scenario, arena)
    if outcome.skipped:
        pytest.skip(outcome.skipped)

    assert outcome.complaints == ()


def test_a_disk_that_fills_up_ends_the_run_in_words_and_a_resume_finishes_it(arena):
    outcome = play("disk_full", arena)
    if outcome.skipped:  # no right to mount a small disk: a limit on every file cuts writes short instead
        outcome = play("write_cut_short", arena)

    assert outcome.complaints == ()
    assert outcome.note
