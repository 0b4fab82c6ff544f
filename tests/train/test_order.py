"""An epoch's order: complete, shared by ranks, the same again, and local."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.train.dataset import deal_batches, epoch_order


def sizes(counts: list[int], weights: list[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images of pieces and their weights."""
    return np.array(counts), np.array(weights or [1.0] * len(counts))


COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(counts=COUNTS, seed=st.integers(0, 9), window=st.integers(1, 100))
def test_every_image_is_there_exactly_once(counts: list[int], seed: int, window: int) -> None:
    order = epoch_order(*sizes(counts), seed, 0, window)
    assert sorted(order.tolist()) == list(range(sum(counts)))


@given(counts=COUNTS, world=st.integers(1, 5), batch=st.integers(1, 7))
def test_ranks_share_an_epoch_without_overlap_and_take_as_many_steps(counts: list[int], world: int, batch: int) -> None:
    order = epoch_order(*sizes(counts), 0, 0, 20)
    steps = [list(deal_batches(order, batch, rank=rank, world=world)) for rank in range(world)]
    assert len({len(own) for own in steps}) == 1
    seen = [turn[2] for own in steps for turns in own for turn in turns]
    assert sorted(seen) == list(range(sum(counts)))


@given(step=st.integers(0, 12), epoch=st.integers(0, 3))
def test_an_epoch_can_be_taken_up_at_any_step(step: int, epoch: int) -> None:
    order = epoch_order(*sizes([30, 11, 7]), 5, epoch, 16)
    assert list(deal_batches(order, 4, epoch, step)) == list(deal_batches(order, 4, epoch))[step:]


def test_epochs_and_seeds_differ_and_come_again() -> None:
    counts = sizes([50, 50])
    first = epoch_order(*counts, 0, 0, 64)
    assert (epoch_order(*counts, 0, 0, 64) == first).all()
    assert (epoch_order(*counts, 0, 1, 64) != first).any()
    assert (epoch_order(*counts, 1, 0, 64) != first).any()


def test_neighbours_come_from_several_pieces_but_from_one_window() -> None:
    counts = sizes([100] * 20)
    pieces = epoch_order(*counts, 0, 0, 400) // 100
    for start in range(0, 2000, 400):
        assert len(set(pieces[start : start + 400].tolist())) == 4
    assert len(set(pieces[:40].tolist())) == 4


@pytest.mark.parametrize(("weight", "least", "most"), [(0.0, 0, 0), (2.0, 2, 2), (0.25, 0, 1), (1.5, 1, 2)])
def test_weights_say_how_often_an_image_comes(weight: float, least: int, most: int) -> None:
    counts = sizes([400, 400], [1.0, weight])
    visits = np.bincount(epoch_order(*counts, 0, 0, 300), minlength=800)
    assert (visits[:400] == 1).all()
    assert visits[400:].min() == least
    assert visits[400:].max() == most
    assert visits[400:].mean() == pytest.approx(weight, abs=0.08)
