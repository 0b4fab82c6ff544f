"""Runs in virtual time: nothing is lost or done twice, chance is repeatable, and deaths cost what arithmetic says."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulate import (
    GOOD_LUCK,
    Scenario,
    ScenarioError,
    Simulated,
    as_table,
    attempts_against_chance,
    expected_unlucky,
    main,
    recommend,
    simulate,
)

from dto_pipeline.config import RunConfig

CALM = Scenario(
    images=64_000, workers=16, mtbf_s=math.inf, shard_images=100, image_s=0.04, start_s=60.0, spread=0.0
)  # 640 shards of 4 s, 40 for each worker
STORMY = dataclasses.replace(CALM, mtbf_s=300.0, start_s=10.0, spread=0.1)


def simulate_sizes(scenario: Scenario, *sizes: int) -> list[Simulated]:
    return [simulate(dataclasses.replace(scenario, shard_images=size)) for size in sizes]


def test_without_deaths_only_the_start_up_is_lost() -> None:
    result = simulate(CALM)

    assert result.wall_s == pytest.approx(60.0 + 40 * 4.0)
    assert result.efficiency == pytest.approx(1.0)
    assert (result.done, result.images_done, result.lost_s, result.deaths) == (640, 64_000, 0.0, 0)


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    once, again, other = (simulate(dataclasses.replace(STORMY, seed=seed)) for seed in (1, 1, 2))

    assert dataclasses.replace(once, driver_cpu_s=0.0) == dataclasses.replace(again, driver_cpu_s=0.0)
    assert once.wall_s != other.wall_s


@settings(max_examples=25, deadline=None)
@given(
    workers=st.integers(1, 40),
    shard_images=st.integers(1, 300),
    mtbf_s=st.floats(200.0, 5000.0),
    preempted=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_whatever_dies_every_shard_is_done_exactly_once(
    workers: int, shard_images: int, mtbf_s: float, preempted: float, seed: int
) -> None:
    scenario = Scenario(5000, workers, mtbf_s, shard_images, start_s=1.0, preempted=preempted, seed=seed)
    result = simulate(scenario, RunConfig(max_attempts=30))

    assert (result.done, result.images_done, result.repeated) == (scenario.shards, 5000, 0)
    assert result.useful_s == pytest.approx(5000 * scenario.image_s, rel=0.15)
    assert result.wall_s * workers >= result.useful_s + result.lost_s


def test_lost_work_grows_with_the_shard() -> None:
    sizes = simulate_sizes(dataclasses.replace(STORMY, images=640_000, workers=64), 25, 100, 400, 1600)

    lost = [result.lost_share for result in sizes]
    assert lost == sorted(lost)
    assert lost[0] > 0
    # A death falls in the middle of a shard on average: half a shard of 4 s every 300 s.
    assert lost[1] == pytest.approx(2.0 / 300.0, rel=0.35)


def test_preempted_workers_cost_no_attempts() -> None:
    result = simulate(dataclasses.replace(STORMY, preempted=1.0))

    assert result.deaths == result.preemptions > 0
    assert result.retries == 0


def test_workers_that_hang_while_they_load_are_replaced_after_their_deadline() -> None:
    scenario = dataclasses.replace(CALM, hanging=0.3)
    result = simulate(scenario, RunConfig(warm_up_timeout_s=100.0))

    assert (result.aborted, result.done, result.retries) == ("", 640, 0)
    few = dataclasses.replace(CALM, workers=11)  # as many as never hang
    assert simulate(CALM).wall_s < result.wall_s < simulate(few).wall_s


def test_a_run_whose_workers_all_hang_while_they_load_stops_and_says_so() -> None:
    result = simulate(dataclasses.replace(CALM, hanging=1.0), RunConfig(warm_up_timeout_s=100.0))

    assert "still loading" in result.aborted
    assert (result.done, result.wall_s) == (0, pytest.approx(100.0, abs=10.0))


def test_waiting_for_cpus_and_gpus_does_not_count_as_hanging() -> None:
    result = simulate(dataclasses.replace(CALM, queue_s=5000.0), RunConfig(warm_up_timeout_s=61.0))

    assert (result.aborted, result.done) == ("", 640)
    assert result.wall_s == pytest.approx(5000.0 + 60.0 + 40 * 4.0)


def test_shards_that_kill_every_worker_are_given_up_and_no_others() -> None:
    result = simulate(dataclasses.replace(STORMY, mtbf_s=3000.0, poison=3))

    assert (len(result.given_up), result.unlucky, result.done) == (3, 0, 637)


def test_long_shards_on_workers_that_die_are_given_up_by_chance_as_often_as_expected() -> None:
    scenario = Scenario(images=200_000, workers=64, mtbf_s=300.0, shard_images=100, image_s=1.0, start_s=5.0)
    result = simulate(scenario, RunConfig(max_failed_shards=10**6))

    assert result.unlucky == len(result.given_up)
    assert result.unlucky == pytest.approx(expected_unlucky(scenario, 3), rel=0.4)
    assert attempts_against_chance(scenario) > 3
    enough = RunConfig(max_attempts=attempts_against_chance(scenario))
    assert expected_unlucky(scenario, enough.max_attempts) <= GOOD_LUCK
    assert simulate(scenario, enough).unlucky == 0


def test_a_run_that_gives_up_too_much_says_so_and_is_not_recommended() -> None:
    scenario = Scenario(images=20_000, workers=8, mtbf_s=100.0, shard_images=500, image_s=1.0, start_s=5.0)
    sizes = simulate_sizes(scenario, 10, 500)

    assert "given up" in sizes[1].aborted
    assert "the run stopped" in as_table(sizes)
    best = recommend(sizes)
    assert best is None or best.scenario.shard_images == 10


def test_five_hundred_workers_that_start_at_once_are_no_reason_to_stop_and_keep_the_loop_fast() -> None:
    result = simulate(Scenario(images=1_000_000, shard_images=200))

    assert (result.aborted, result.done) == ("", 5000)
    assert result.deaths > 0
    assert result.driver_ms_per_shard < 1.0


def test_the_largest_size_that_costs_nothing_is_recommended() -> None:
    sizes = simulate_sizes(CALM, 50, 100, 4000)

    best = recommend(sizes)
    assert best is not None
    assert best.scenario.shard_images == 4000  # 16 shards for 16 workers, nobody dies
    assert "recommended: 4000 images a shard" in as_table(sizes)


@pytest.mark.parametrize(
    "change", [{"images": 0}, {"mtbf_s": 0.0}, {"preempted": 2.0}, {"poison": 641}, {"start_s": -1}]
)
def test_a_scenario_that_makes_no_sense_is_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=next(iter(change))):
        dataclasses.replace(CALM, **change)


@pytest.mark.parametrize(("life", "mtbf_s"), [("10m", 600.0), ("never", None)])
def test_the_job_prints_a_table_and_writes_json(
    life: str, mtbf_s: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", "20000", "--workers", "8", "--mtbf", life, "--shard-images", "50,500"]
    assert main([*options, "--json", str(tmp_path / "simulated.json")]) == 0

    assert "recommended" in capsys.readouterr().out
    found = json.loads((tmp_path / "simulated.json").read_text())["results"]
    assert [result["scenario"]["shard_images"] for result in found] == [50, 500]
    assert all((result["images_done"], result["scenario"]["mtbf_s"]) == (20000, mtbf_s) for result in found)


@pytest.mark.parametrize("options", [["--mtbf", "soon"], ["--shard-images", "10,x"], ["--shard-images", "0"]])
def test_a_time_or_size_that_cannot_be_read_is_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert options[0] in capsys.readouterr().err
