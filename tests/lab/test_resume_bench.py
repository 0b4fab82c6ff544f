"""The benchmark of resume looks at a run whose every shard holds."""

from dto_pipeline.lab.bench_resume import run_resume_bench


def test_the_bench_resumes_every_shard_it_generated(tmp_path):
    bench = run_resume_bench(20, tmp_path)

    assert bench.shards == 20
    assert 0 < bench.sizes_s < bench.total_s
    assert "20 finished shards" in bench.as_table()
    assert list(tmp_path.iterdir()) == []
