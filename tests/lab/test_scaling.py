"""The benchmark of a second worker: it starts its clock when all are ready, works really, and counts what it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.cli import build_parser
from dto_pipeline.lab.bench_scaling import WORKERS, Scaling, SpinningRunner, StartTogether, blocks_for, measure_scaling
from dto_pipeline.run.loop import drive
from dto_pipeline.run.schedule import Schedule
from tests.run.chaos import label_bytes, tiny_config
from tests.run.fakes import START_S, FakeLedger, FakePool, make_config


class _LatecomerPool(FakePool):
    """Every further worker is asked for a second after the one before."""

    def start_worker(self) -> str:
        worker = super().start_worker()
        self._time += 1.0
        return worker


def test_the_clock_starts_when_the_last_worker_is_ready() -> None:
    ledger, pool = FakeLedger(), StartTogether(_LatecomerPool(), workers=2)
    drive(Schedule(range(8), make_config(workers=2)), pool, ledger)

    assert pool.began == pytest.approx(START_S + 1.0)
    assert pool.now() - pool.began == pytest.approx(8 / 2 * 10.0)
    assert sorted(ledger.done) == list(range(8))


def test_a_worker_that_dies_while_others_are_awaited_is_replaced() -> None:
    ledger, pool = FakeLedger(), StartTogether(FakePool(starts=iter(["ready", "fail", "ready"])), workers=2)
    drive(Schedule(range(4), make_config(workers=2)), pool, ledger)

    assert sorted(ledger.done) == list(range(4))
    assert pool.began > START_S


def test_the_fake_load_is_counted_in_blocks_of_about_the_time_asked_for() -> None:
    assert blocks_for(0.0) == 1
    assert blocks_for(0.2) > 20 * blocks_for(0.002)


def test_the_table_says_ratio_goal_and_what_is_not_in_it() -> None:
    scaling = Scaling(shards=16, images=16, spin_s=0.2, seconds={1: [4.0, 4.2, 3.9], 2: [2.0, 2.2, 2.1]})

    assert scaling.ratio == pytest.approx(4.0 / 2.1)
    assert "two workers / one = 1.90 (goal 1.9; from all workers ready" in scaling.as_table()
    assert scaling.to_json()["ratio"] == scaling.ratio


def test_the_load_is_beside_the_real_work_and_changes_no_label(tiny, undisturbed, tmp_path: Path) -> None:
    from dto_pipeline.run.driver import run_pipeline

    runner = SpinningRunner(tiny_config(), tiny.manifest, tmp_path / "run", blocks=1)
    run_pipeline(tiny.manifest, tmp_path / "run", tiny_config(), progress=False, runner=runner)

    assert label_bytes(tmp_path / "run") == undisturbed


@pytest.mark.slow
def test_one_and_two_real_workers_do_the_same_shards(tiny, undisturbed, tmp_path: Path) -> None:
    scaling = measure_scaling(tiny.manifest, tmp_path, tiny_config(), spin_s=0.001, repeats=1)

    assert set(scaling.seconds) == set(WORKERS)
    assert all(times[0] > 0 for times in scaling.seconds.values())
    for workers in WORKERS:
        assert label_bytes(tmp_path / f"run-{workers}-0") == undisturbed


def test_bench_takes_workers_and_load() -> None:
    arguments = build_parser().parse_args(["bench", "--workers", "--spin-s", "0.5"])
    assert (arguments.workers, arguments.spin_s) == (True, 0.5)
