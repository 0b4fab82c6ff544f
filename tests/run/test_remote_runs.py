"""Runs whose folder is behind a URI, or whose images are in tars: labels, resume and refusals as with local files."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

import dto_pipeline as dto
from dto_pipeline.cli import main
from dto_pipeline.commands.diff import compare
from dto_pipeline.config import load_config
from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.exports.job import Selection
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.object_store import RemoteStore
from dto_pipeline.data.storage import StoreError, as_location, open_store
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, read_identity, read_run_labels, sweep_leftovers
from dto_pipeline.run.report import read_status
from dto_pipeline.view.verify import verify_run
from tests.memory_store import clear_memory, put
from tests.run.chaos import RAISE, ChaosRunner, label_bytes, remote_labels, tiny_config
from tests.tars import write_tar

RUN = "memory://remote/runs/tiny"
SHARDS = 6


@pytest.fixture(autouse=True)
def _bucket():
    clear_memory()
    yield
    clear_memory()


@pytest.fixture
def start(tiny):
    """Starts (again) the run of the test."""

    def call(chaos=None, config=None, **options):
        config = config or tiny_config()
        runner = ChaosRunner(config, tiny.manifest, RUN, **chaos) if chaos else None
        return run_pipeline(tiny.manifest, RUN, config, progress=False, runner=runner, **options)

    return call


@pytest.fixture
def directory():
    return RunDirectory(as_location(RUN))


def everything(root: str = RUN) -> list[str]:
    store = open_store(root)
    return sorted(f"{folder}/{name}" for folder in ("", "labels", "receipts") for name in store.entries(folder))


def test_a_remote_run_has_the_bytes_of_a_local_one_and_nothing_else(start, undisturbed):
    assert start().exit_code == 0

    assert remote_labels(RUN) == undisturbed
    shards = [f"shard-{shard:05d}" for shard in range(SHARDS)]
    names = ["/run.json", *(f"labels/{shard}.parquet" for shard in shards), *(f"receipts/{s}.json" for s in shards)]
    assert everything() == names


def upload(*sources: Path) -> None:
    """Put files, and what lies below folders, under memory://data."""
    for source in sources:
        for path in [source] if source.is_file() else source.rglob("*.*"):
            put(f"data/{path.relative_to(source.parent)}", path.read_bytes())


def test_everything_may_be_remote(tiny, tmp_path):
    root, body = tiny.dataset.root, Path(str(resources.files("dto_pipeline.assets")))
    upload(root / "images", root / "depth", root / "labels", body / "SMPLA_NEUTRAL.npz")
    build_manifest(replace(tiny.dataset, root="memory://data"), "memory://data/m.parquet", progress=False)
    config = load_config(
        overrides=["run.device=cpu", "run.workers=0", "body.model_path=memory://data/SMPLA_NEUTRAL.npz"]
    )

    summary = run_pipeline("memory://data/m.parquet", RUN, config, progress=False)

    local = run_pipeline(tiny.manifest, tmp_path / "run", tiny_config(), progress=False)
    assert (summary.image_status, summary.person_status) == (local.image_status, local.person_status)
    assert verify_run(RUN).passed


@pytest.mark.parametrize("damage", ["receipt", "label", "swapped"])
def test_what_does_not_hold_in_a_remote_run_is_done_again(start, directory, undisturbed, damage):
    start()
    store = directory.store
    if damage == "receipt":
        store.replace("receipts/shard-00003.json", store.read("receipts/shard-00003.json")[:40])
    elif damage == "label":
        store.replace("labels/shard-00003.parquet", store.read("labels/shard-00003.parquet")[:-9])
    else:
        store.replace("labels/shard-00003.parquet", same_size_of_another_shard(store))

    assert start().done_now == 1
    assert remote_labels(RUN) == undisturbed


def same_size_of_another_shard(store) -> bytes:
    """The label file of shard 2, filled up in front of its footer to the size of shard 3's."""
    other, size = store.read("labels/shard-00002.parquet"), store.size("labels/shard-00003.parquet")
    return other[-size:].rjust(size, b"x")


def test_failures_are_kept_and_taken_up_again(start, directory):
    assert start(chaos={"faults": {1: RAISE}}, config=tiny_config(max_attempts=1)).exit_code == 1
    status = read_status(RUN)
    assert status.shards == {"done": SHARDS - 1, "failed": 1, "pending": 0}
    assert status.driver == "none"

    assert start(retry_failed=True).exit_code == 0
    assert directory.store.entries("failures") == {}


def test_readers_of_runs_take_uris(start, tiny, tmp_path, undisturbed):
    start()
    local = tmp_path / "run"
    run_pipeline(tiny.manifest, local, tiny_config(), progress=False)

    assert verify_run(RUN).passed
    assert compare(str(local), RUN).equal
    assert len(find_label_files(RUN)) == SHARDS
    for run, out in ((RUN, "a"), (local, "b")):
        export_labels([read_run_labels(run)], "parquet", tmp_path / out, Selection(), progress=False)
    pairs = [(path, tmp_path / "b" / path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.parquet")]
    assert pairs
    assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)


@pytest.mark.parametrize(
    "words",
    [
        ["status", RUN, "--json"],
        ["verify", RUN],
        ["diff", RUN, RUN],
        ["view", RUN, "-o", "OUT", "--worst", "1"],
        ["report", RUN, "-o", "OUT", "--worst", "1", "--random", "0"],
        ["export", RUN, "--format", "persons", "-o", "OUT", "--quiet"],
    ],
    ids=lambda words: words[0],
)
def test_verbs_take_uris(start, tmp_path, capsys, words):
    start()

    assert main([str(tmp_path / "out") if word == "OUT" else word for word in words]) == 0
    assert capsys.readouterr().out


def test_python_reads_a_remote_run(start, tiny):
    start()

    assert dto.read_table(RUN).num_rows == tiny.images
    assert sum(1 for _ in dto.read_scenes(RUN)) == tiny.images
    assert dto.read_table("memory://remote/runs/tiny/labels", columns=["image_id"]).num_rows == tiny.images
    data = dto.torch_dataset(RUN, images=True, select="all")
    assert len(data) == tiny.images


def test_a_remote_folder_that_is_no_run_is_named():
    with pytest.raises(RunDirectoryError, match="holds no run"):
        read_identity(RunDirectory("memory://remote/nothing"))


def test_a_place_without_atomic_create_is_refused_in_one_sentence():
    store = open_store("http://127.0.0.1:9/run")
    with pytest.raises(StoreError, match="can be read, not listed or created; use s3://"):
        store.prepare([])
    with pytest.raises(StoreError, match="can be read, not listed or created; use s3://"):
        store.entries()


def test_a_run_that_cleans_up_at_that_moment_does_not_make_a_server_look_careless(directory, monkeypatch):
    create = RemoteStore.create

    def create_and_sweep(store: RemoteStore, name: str, data: bytes) -> bool:
        answer = create(store, name, data)
        sweep_leftovers(directory)
        return answer

    monkeypatch.setattr(RemoteStore, "create", create_and_sweep)
    directory.create_folders()
    assert everything() == []


def test_a_server_that_overwrites_what_it_should_only_create_is_refused(tiny, monkeypatch):
    def overwrite(store: RemoteStore, name: str, data: bytes) -> bool:
        store.replace(name, data)
        return True

    monkeypatch.setattr(RemoteStore, "create", overwrite)

    with pytest.raises(StoreError, match="overwrites files it was asked to create only if absent"):
        run_pipeline(tiny.manifest, RUN, tiny_config(), progress=False)
    assert everything() == []


def labels_of(run_dir):
    tables = [read_labels(path) for path in sorted((run_dir / "labels").glob("*.parquet"))]
    return [row for table in tables for row in table.drop_columns(["persons", "message"]).to_pylist()]


def test_images_in_tars_give_the_same_labels_as_files(tiny, finished, tmp_path):
    root = tiny.dataset.root
    files = {path.name: path.read_bytes() for path in sorted((root / "images").iterdir())}
    half = len(files) // 2
    write_tar(tmp_path / "tars/0.tar", dict(list(files.items())[:half]))
    write_tar(tmp_path / "tars/1.tar", dict(list(files.items())[half:]))
    dataset = replace(tiny.dataset, images_in="tars", places={"images": tmp_path / "tars"})
    build_manifest(dataset, tmp_path / "tars.parquet", progress=False)
    run_pipeline(tmp_path / "tars.parquet", tmp_path / "run", tiny_config(), progress=False)
    assert str(labels_of(tmp_path / "run")) == str(labels_of(finished))


def test_a_run_starts_from_a_manifest_and_images_behind_uris(tiny, undisturbed, tmp_path):
    upload(tiny.dataset.root / "images")
    put("data/m.parquet", tiny.manifest.read_bytes())
    manifest, images = "memory://data/m.parquet", "memory://data/images"
    run_pipeline(manifest, tmp_path / "run", tiny_config(), images_root=images, progress=False)
    assert label_bytes(tmp_path / "run") == undisturbed
