"""Starts that are limited to a part of a run, and starts that only say what they would do."""

import dataclasses
import json
import re

import pytest

from dto_pipeline.config import load_config
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError
from dto_pipeline.run.lease import new_record
from dto_pipeline.run.plan import Selection, SelectionError
from dto_pipeline.run.report import plan_pipeline
from tests.run.chaos import RAISE, ChaosRunner, label_bytes, tiny_config

SHARDS = 6


@pytest.fixture
def start(tiny, tmp_path):
    """Starts (again) the one run of a test."""

    def run(faults=None, **options):
        runner = faults and ChaosRunner(tiny_config(), tiny.manifest, tmp_path / "run", faults=faults)
        return run_pipeline(tiny.manifest, tmp_path / "run", tiny_config(), progress=False, runner=runner, **options)

    return run


@pytest.fixture
def plan(tiny, tmp_path):
    def forecast(config=None, **options):
        return plan_pipeline(tiny.manifest, tmp_path / "run", config or tiny_config(), **options)

    return forecast


def test_only_selected_shards_are_done_and_the_exit_code_says_so(start, tmp_path, undisturbed):
    summary = start(selection=Selection(shards="1-2,4"))

    assert (summary.done_now, summary.unselected, summary.exit_code) == (3, 3, 3)
    assert "3 shards were not selected" in summary.as_table()
    assert sorted(label_bytes(tmp_path / "run")) == [f"shard-0000{n}.parquet" for n in (1, 2, 4)]
    again = start(selection=Selection(shards="1-2"))
    assert again.nothing_to_do
    assert again.exit_code == 3
    assert start().exit_code == 0
    assert label_bytes(tmp_path / "run") == undisturbed


def test_a_limit_goes_on_where_the_last_start_ended(start):
    done = [start(selection=Selection(limit=7)).done_now for _ in range(3)]

    assert done == [2, 2, 2]  # shards of three images


def test_a_shard_given_up_outside_the_selection_is_still_named(start):
    start({2: RAISE})

    summary = start(selection=Selection(shards="0-1"))
    assert (list(summary.failed_shards), summary.exit_code) == ([2], 1)


def test_a_retry_takes_up_selected_shards_only(start):
    start({2: RAISE, 4: RAISE})

    summary = start(retry_failed=True, selection=Selection(shards="4"))
    assert (summary.done_now, list(summary.failed_shards)) == (1, [2])


def test_a_mistaken_selection_makes_no_run(start, tmp_path):
    with pytest.raises(SelectionError):
        start(selection=Selection(shards="99"))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_new_run_writes_nothing_and_knows_no_time(plan, tiny, tmp_path):
    forecast = plan()

    assert not (tmp_path / "run").exists()
    assert (forecast.selected, forecast.images, forecast.persons) == (SHARDS, tiny.images, tiny.persons)
    assert forecast.gpu_hours is None
    assert "do a few shards first (--limit)" in forecast.as_table()
    assert json.loads(json.dumps(forecast.to_json()))["exit_code"] == 0


def test_receipts_become_hours_of_gpus(start, plan):
    start(selection=Selection(limit=3))
    forecast = plan(config=tiny_config(workers=4, gpus_per_worker=0.5))

    assert forecast.worker_hours > 0
    assert forecast.gpu_hours == pytest.approx(forecast.worker_hours / 2)
    assert f"{forecast.gpu_hours:.2f} GPU-hours" in forecast.as_table()


def test_a_dry_run_counts_what_is_left_and_takes_its_figures_from_receipts(start, plan, tmp_path):
    start({2: RAISE}, selection=Selection(shards="0-3"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}

    forecast = plan(selection=Selection(limit=3), retry_failed=True)

    assert (forecast.done, forecast.pending, forecast.failed) == (3, 3, 0)
    assert (forecast.selected, forecast.repairs) == (0, 2)  # the limit is spent on failed images of shards 0 and 1
    assert "from this run's 3 receipts" in forecast.as_table()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_dry_run_says_what_would_refuse(start, plan, tmp_path):
    start(selection=Selection(limit=1))
    config = tiny_config()
    other = dataclasses.replace(config, solver=type(config.solver)(max_height=2.2))
    with RunDirectory(tmp_path / "run").lock():
        forecast = plan(config=other)

    assert forecast.exit_code == 2
    assert re.match(r"locked: process \d+ on .* since \d{4}-.*", forecast.refusals[0])
    assert "solver.max_height: 2.1 -> 2.2" in forecast.refusals[1]
    assert (forecast.done, forecast.pending) == (1, SHARDS - 1)


def test_a_driver_on_another_host_is_named_by_a_dry_run_which_counts_all_the_same(start, plan, tmp_path):
    start(selection=Selection(limit=1))
    record = dataclasses.replace(new_record(tiny_config().run), host="far", machine="another boot/pid:[1]", pid=77)
    lease = json.dumps({"schema": "dto-lease/1", **dataclasses.asdict(record)})
    (tmp_path / "run" / "lease" / "00000009.json").write_text(lease)

    forecast = plan()

    assert (forecast.exit_code, forecast.done, forecast.selected) == (0, 1, SHARDS - 1)
    assert forecast.driver == f"process 77 on far since {record.since} (on another host)"
    assert f"driver   {forecast.driver}" in forecast.as_table()


def test_a_dry_run_finds_the_label_file_that_a_start_would_do_again(start, plan, tmp_path):
    start()
    path = RunDirectory(tmp_path / "run").label_file(1)
    path.write_bytes(path.read_bytes()[:-4] + b"PAR0")

    forecast = plan()
    assert (forecast.done, forecast.selected) == (SHARDS - 1, 1)
    assert start().done_now == forecast.selected


def test_a_manifest_without_depth_is_refused_before_anything_is_made(tiny, tmp_path):
    build_manifest(dataclasses.replace(tiny.dataset, depth=""), tmp_path / "blind.parquet", progress=False)
    start = tmp_path / "blind.parquet", tmp_path / "run", tiny_config()

    with pytest.raises(RunDirectoryError, match=r"names no depth maps.*depth\.source=model.*docs/seeing\.md"):
        run_pipeline(*start, progress=False)
    assert not (tmp_path / "run").exists()
    assert "names no depth maps" in plan_pipeline(*start).refusals[0]
    looked = load_config(overrides=["run.workers=0", "depth.source=model", "depth.model=demo"])
    assert plan_pipeline(*start[:2], looked).refusals == []


def test_a_dry_run_refuses_places_that_a_start_refuses(plan, tmp_path):
    forecast = plan(images_root=tmp_path / "gone")

    assert (forecast.exit_code, forecast.selected) == (2, SHARDS)
    assert re.search("gone of .*: there is no such folder", forecast.as_table())
