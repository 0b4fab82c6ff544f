"""Containers: entries taken out and put back, nested ones included."""

from __future__ import annotations

import dataclasses

import torch

from dto_pipeline.scene import GroupFits, PersonMaps, Posterior


def make_maps(scenes: int) -> PersonMaps:
    person = torch.arange(scenes)[:, None, None].expand(scenes, 2, 3)
    return PersonMaps(person=person, z=person.to(torch.float32), visible_vertices=person[..., 0])


def test_entries_taken_and_put_back_change_nothing() -> None:
    maps, rows = make_maps(4), torch.tensor([2, 0])
    taken = maps.take(rows)
    assert taken.person[:, 0, 0].tolist() == [2, 0]
    again = maps.put(rows, taken)
    assert all(torch.equal(getattr(again, name), getattr(maps, name)) for name in vars(maps))


def test_putting_changes_only_the_entries_named() -> None:
    maps = make_maps(4)
    changed = maps.put(torch.tensor([1]), make_maps(1))
    assert changed.person[:, 0, 0].tolist() == [0, 0, 2, 3]
    assert maps.person[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_container_inside_a_container_moves_with_it() -> None:
    people = torch.arange(6, dtype=torch.float64).view(3, 2)
    posterior = Posterior(
        z_covariance=people[..., None].expand(3, 2, 2),
        height_sigma=people,
        depth_model=torch.arange(3),
        disparity_line=people,
    )
    names = [f.name for f in dataclasses.fields(GroupFits) if f.name != "posterior"]
    fits = GroupFits(**dict.fromkeys(names, people), posterior=posterior)
    first, last = fits.take(torch.tensor([0])), torch.tensor([2])
    assert first.posterior is not None
    assert first.posterior.depth_model.tolist() == [0]
    put = fits.put(last, first).posterior
    assert put is not None
    assert put.depth_model.tolist() == [0, 1, 0]
    without = dataclasses.replace(fits, posterior=None)
    assert without.take(last).posterior is None
