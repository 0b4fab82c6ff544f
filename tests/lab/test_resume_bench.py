"""What `dto status` and the plan of `dto run` cost on a run of ten thousand shards."""

from pathlib import Path

import pytest

from dto_pipeline.lab.bench_resume import run_resume_bench


@pytest.mark.slow  # ten thousand label files
def test_ten_thousand_shards_with_five_hundred_failures_are_told_and_planned_in_two_seconds(tmp_path: Path) -> None:
    bench = run_resume_bench(10_000, tmp_path)
    assert (bench.shards, bench.given_up) == (10_000, 500)
    assert 0 < bench.status_cpu_s < 2.0  # CPU: other work of the machine must not fail this
    assert 0 < bench.plan_cpu_s < 2.0
    assert "10000 shards, 500 of them given up" in bench.as_table()
    assert list(tmp_path.iterdir()) == []
