"""What `dto status` and the plan of `dto run` cost on a run of thousands of shards."""

from pathlib import Path

import pytest

from dto_pipeline.lab.bench_resume import run_resume_bench


@pytest.mark.slow  # three thousand label files
def test_three_thousand_shards_with_failures_are_told_and_planned_in_0_6_s_of_cpu(tmp_path: Path) -> None:
    bench = run_resume_bench(3000, tmp_path)
    assert (bench.shards, bench.given_up) == (3000, 150)
    assert 0 < bench.status_cpu_s < 0.6  # CPU: other work of the machine must not fail this
    assert 0 < bench.plan_cpu_s < 0.6
    assert "3000 shards, 150 of them given up" in bench.as_table()
    assert list(tmp_path.iterdir()) == []
