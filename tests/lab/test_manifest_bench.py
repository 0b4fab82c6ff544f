from dto_pipeline.lab.bench_manifest import FULL_ROWS, run_manifest_bench


def test_the_bench_builds_every_row_and_says_what_it_took(tmp_path):
    bench = run_manifest_bench(rows=200, shard_images=16, folder=tmp_path)
    assert bench.rows == 200
    assert 20 < bench.images <= 42
    assert bench.full_seconds == bench.seconds * FULL_ROWS / 200
    assert "200 label rows" in bench.as_table()
    assert list(tmp_path.iterdir()) == []
