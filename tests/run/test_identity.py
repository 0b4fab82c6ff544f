"""A run is told by its contents: settings, body, networks; never by where they lie or how a path was spelled."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.commands.diff import compare
from dto_pipeline.commands.training_data import check_bodies, open_label_sets
from dto_pipeline.config import BodyConfig, PipelineConfig, load_config
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.data.dataset import load_dataset
from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.exports.job import ExportError
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.manifest_build.merge import merge_predictions
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel, BodyModelError, load_body
from dto_pipeline.models.networks import locate_body, sha256_once
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, RunMismatch, read_identity, read_run_labels
from dto_pipeline.run.identity import hash_settings, identify_run
from dto_pipeline.run.plan import Selection
from dto_pipeline.run.publish import find_orphan
from dto_pipeline.run.report import plan_pipeline
from dto_pipeline.run.worker import ShardRunner
from dto_pipeline.train.config import DataConfig
from dto_pipeline.view.run_files import load_run_body, open_run_files
from dto_pipeline.view.verify import verify_run
from tests.run.chaos import label_bytes, tiny_config
from tests.tiny_dataset import TinyDataset, write_tiny_dataset
from tests.tiny_models import save_depth_anything

ONE = Selection(limit=1)


def write_body(path: Path, factor: float = 1.0) -> Path:
    """The stand-in, made taller by a factor, as a body model of its own."""
    with np.load(locate_body("demo")) as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["v_template"] = changed["v_template"] * np.float32(factor)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **changed)
    return path


def with_body(path: Path | str) -> PipelineConfig:
    return dataclasses.replace(tiny_config(), body=BodyConfig(str(path)))


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two body models that differ."""
    folder = tmp_path_factory.mktemp("bodies")
    return write_body(folder / "one.npz"), write_body(folder / "other.npz", 1.01)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: TinyDataset, bodies: tuple[Path, Path]) -> tuple[Path, Path]:
    """One shard of the tiny set, with each body."""
    folder = tmp_path_factory.mktemp("runs")
    for body in bodies:
        run_pipeline(tiny.manifest, folder / body.stem, with_body(body), selection=ONE, progress=False)
    return folder / "one", folder / "other"


def started(run_dir: Path, tiny: TinyDataset, config: PipelineConfig, **options: object) -> None:
    run_pipeline(tiny.manifest, run_dir, config, selection=ONE, progress=False, **options)  # type: ignore[arg-type]


def test_a_body_that_moved_is_the_same_run_and_labels_tell_no_place(
    tiny: TinyDataset, bodies: tuple[Path, Path], runs: tuple[Path, Path], tmp_path: Path, monkeypatch
) -> None:
    """Another folder, another name, a relative path, a folder in place of the file: equal bytes, and resumed."""
    moved = Path(shutil.copy(bodies[0], tmp_path / "SMPL_NEUTRAL.npz"))
    monkeypatch.chdir(tmp_path)
    places: list[Path | str] = [moved, tmp_path, "SMPL_NEUTRAL.npz", "."]
    for number, place in enumerate(places):
        run_dir = tmp_path / f"run-{number}"
        started(run_dir, tiny, with_body(place))
        assert label_bytes(run_dir) == label_bytes(runs[0])
        assert Path(read_identity(RunDirectory(run_dir)).config["body"]["model_path"]).is_absolute()
    started(tmp_path / "run-0", tiny, with_body(bodies[0]))


def test_another_body_at_the_same_path_is_refused_on_resume_with_both_hashes(
    tiny: TinyDataset, bodies: tuple[Path, Path], tmp_path: Path
) -> None:
    place = Path(shutil.copy(bodies[0], tmp_path / "body.npz"))
    started(tmp_path / "run", tiny, with_body(place))
    shutil.copy(bodies[1], place)
    hashes = [sha256_once(body) for body in bodies]
    with pytest.raises(RunMismatch, match=f"content of the body: '{hashes[0]}' -> '{hashes[1]}'"):
        started(tmp_path / "run", tiny, with_body(place))
    forecast = plan_pipeline(tiny.manifest, tmp_path / "run", with_body(place))
    assert forecast.exit_code == 2
    assert hashes[1] in forecast.refusals[0]


def test_a_worker_that_sees_another_body_is_refused_at_warm_up(
    tiny: TinyDataset, bodies: tuple[Path, Path], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """What a worker of another node would do, where other bytes lie at the same path."""
    here = Path(shutil.copy(bodies[1], tmp_path / "body.npz"))
    with pytest.raises(RunMismatch, match=r"differs from .*\ncontent of the body: "):
        ShardRunner(with_body(here), tiny.manifest, runs[0]).warm_up()


def test_a_worker_that_misses_a_place_says_which_before_its_first_shard(
    tiny: TinyDataset, bodies: tuple[Path, Path], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    for options, what in (
        ({"images_root": tmp_path / "nowhere"}, r"images folder .*nowhere.*no such folder here"),
        ({"depth_root": tmp_path / "nowhere"}, r"depth folder .*nowhere.*no such folder here"),
    ):
        with pytest.raises(RunDirectoryError, match=f"worker .* cannot do this run: {what}"):
            ShardRunner(with_body(bodies[0]), tiny.manifest, runs[0], **options).warm_up()  # type: ignore[arg-type]
    with pytest.raises(RunDirectoryError, match=r"body\.model_path: no body model at .*gone"):
        ShardRunner(with_body(tmp_path / "gone.npz"), tiny.manifest, runs[0]).warm_up()


def test_labels_of_another_body_are_not_adopted(
    tiny: TinyDataset, bodies: tuple[Path, Path], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest = Manifest.open(tiny.manifest)
    ids = manifest.read_shard(0).column("image_id").to_pylist()
    own, other = (identify_run(with_body(body), manifest) for body in bodies)
    shutil.copytree(runs[0] / "labels", tmp_path / "run" / "labels")
    directory = RunDirectory(tmp_path / "run")
    assert find_orphan(directory, own, 0, 0, ids) is not None
    assert find_orphan(directory, other, 0, 0, ids) is None


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_every_deciding_file_of_a_network_folder_is_a_part_of_the_run(
    tiny: TinyDataset, tmp_path: Path, file: str
) -> None:
    folder = save_depth_anything(tmp_path / "network")
    (folder / "preprocessor_config.json").write_text("{}")
    config = load_config(overrides=["body.model_path=demo", "depth.source=model", f"depth.model={folder}"])
    manifest = Manifest.open(tiny.manifest)
    before = identify_run(config, manifest)
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "renamed")
    elsewhere = load_config(overrides=["body.model_path=demo", "depth.source=model", f"depth.model={moved}"])
    assert identify_run(elsewhere, manifest).config_hash == before.config_hash
    (folder / "README.md").write_text("decides nothing")
    assert identify_run(config, manifest).config_hash == before.config_hash
    with (folder / file).open("ab") as stream:
        stream.write(b"\n")
    assert identify_run(config, manifest).config_hash != before.config_hash


def test_a_hub_network_is_identified_by_its_commit(tiny: TinyDataset) -> None:
    def identity(commit: str) -> tuple[str, str]:
        overrides = ["body.model_path=demo", "depth.source=model", "depth.model=somebody/network"]
        config = load_config(overrides=[*overrides, f"depth.revision='{commit}'"])
        found = identify_run(config, Manifest.open(tiny.manifest))
        return found.inputs["depth network"], found.config_hash

    one, other = identity("a" * 40), identity("b" * 40)
    assert one[0] == "somebody/network@" + "a" * 40
    assert one[1] != other[1]


@pytest.mark.parametrize(
    ("override", "counts"),
    [
        ("body.model_path=elsewhere.npz", False),
        ("depth.root=elsewhere", False),
        ("depth.short_side=28", False),  # of a network, and files are read
        ("masks.min_score=0.9", False),
        ("attributes.crop=body", False),
        ("joint.depth_sigma=0.5", False),  # of the solver that is not asked for
        ("run.batch_images=1", False),
        ("depth.scale=0.001", True),
        ("depth.kind=depth", True),
        ("depth.unit=0.03", True),
        ("body.kid_axis=false", True),
        ("masks.source=none", True),
        ("prior.age_prior=false", True),
        ("solver.mode=joint", True),
    ],
)
def test_only_options_that_can_change_a_label_are_a_part_of_the_run(override: str, counts: bool) -> None:
    plain, changed = (load_config(overrides=texts).to_dict() for texts in ([], [override]))
    assert (hash_settings(plain, {"body": "0"}) != hash_settings(changed, {"body": "0"})) is counts


def test_options_of_a_network_count_where_it_is_asked_for() -> None:
    asked = ["depth.source=model", "depth.model=demo"]
    plain, side, unit, kind = (
        hash_settings(load_config(overrides=[*asked, *more]).to_dict(), {})
        for more in ([], ["depth.short_side=28"], ["depth.unit=published"], ["depth.kind=depth"])
    )
    assert len({plain, side, unit}) == 3
    assert kind == plain


def test_a_launch_that_made_no_label_locks_nothing(tiny: TinyDataset, tmp_path: Path) -> None:
    """The first launch has a wrong option and gives up every shard; the second one says what was meant."""
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "not a depth map").touch()
    wrong = dataclasses.replace(
        tiny_config(max_attempts=1), solver=dataclasses.replace(tiny_config().solver, max_height=3.0)
    )

    class Failing(ShardRunner):
        def run(self, shard: int, attempt: int = 1, following: int | None = None) -> Receipt:
            raise RuntimeError("nothing goes")

    run_dir = tmp_path / "run"
    failed = run_pipeline(tiny.manifest, run_dir, wrong, progress=False, runner=Failing(wrong, tiny.manifest, run_dir))
    assert (failed.exit_code, len(failed.failed_shards)) == (1, 6)
    assert plan_pipeline(tiny.manifest, run_dir, tiny_config()).refusals == []
    summary = run_pipeline(tiny.manifest, run_dir, tiny_config(), progress=False)
    assert (summary.exit_code, summary.done_now, summary.failed_shards) == (0, 6, {})
    assert read_identity(RunDirectory(run_dir)).config["solver"]["max_height"] == 2.1
    with pytest.raises(RunMismatch, match=r"solver\.max_height: 2\.1 -> 3\.0"):
        run_pipeline(tiny.manifest, run_dir, wrong, progress=False)


def test_a_folder_of_something_else_is_not_made_a_run(tiny: TinyDataset, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").touch()
    with pytest.raises(RunDirectoryError, match=r"photos is not empty and holds no run \(holiday\.jpg\)"):
        started(photos, tiny, tiny_config())
    assert os.listdir(photos) == ["holiday.jpg"]
    assert "holds no run" in plan_pipeline(tiny.manifest, photos, tiny_config()).refusals[0]
    (photos / "holiday.jpg").unlink()
    (photos / "lost+found").mkdir()  # what a disk of its own has
    (photos / ".snapshot").mkdir()
    (photos / "labels").mkdir()  # what a launch leaves that was killed before it wrote run.json
    started(photos, tiny, tiny_config())


def test_without_a_body_nothing_is_made(tiny: TinyDataset, tmp_path: Path) -> None:
    dataset = dataclasses.replace(tiny.dataset, body="")
    build_manifest(dataset, tmp_path / "plain.parquet", progress=False)
    config = with_body("")
    words = r"name a body: body\.model_path=PATH .* or demo for the free stand-in"
    for start in (run_pipeline, plan_pipeline):
        with pytest.raises(ConfigError, match=words):
            start(tmp_path / "plain.parquet", tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(BodyModelError, match=words):
        load_body("")


def test_only_synthetic_sets_may_name_the_stand_in_in_their_description(tmp_path: Path) -> None:
    description = "name: x\nsource: camerahmr\nlabels: a.npz\nimages: images\nbody: "
    (tmp_path / "x.yaml").write_text(f"{description}demo\n")
    assert load_dataset(tmp_path / "x.yaml", tmp_path).body == "demo"
    (tmp_path / "x.yaml").write_text(f"{description}bodies/SMPL_NEUTRAL.npz\n")
    with pytest.raises(DtoError, match=r"expected demo .*body\.model_path=PATH"):
        load_dataset(tmp_path / "x.yaml", tmp_path)


def make_old(run_dir: Path, out: Path) -> Path:
    """The run as version 0.3.0 recorded it: no hashes, and no body named where it was the stand-in."""
    shutil.copytree(run_dir, out)
    record = json.loads((out / "run.json").read_text())
    del record["inputs"]
    record["config"]["body"]["model_path"] = ""
    (out / "run.json").write_text(json.dumps(record))
    return out


def test_runs_of_earlier_versions_are_read_but_not_resumed(tiny: TinyDataset, tmp_path: Path) -> None:
    new = tmp_path / "new"
    run_pipeline(tiny.manifest, new, tiny_config(), progress=False)
    old = make_old(new, tmp_path / "old")
    assert verify_run(old).passed
    assert load_run_body(open_run_files(old), None).sha256 == sha256_once(locate_body("demo"))
    assert compare(str(old), str(new)).equal
    export_labels([read_run_labels(old)], "parquet", tmp_path / "export", progress=False)
    with pytest.raises(RunMismatch, match=r"content of the body: None -> "):
        run_pipeline(tiny.manifest, old, tiny_config(), progress=False)


def test_labels_of_two_bodies_are_not_taken_together(
    tiny: TinyDataset, bodies: tuple[Path, Path], runs: tuple[Path, Path], body: BodyModel, tmp_path: Path
) -> None:
    both = rf"{runs[0]}.* sha256 {sha256_once(bodies[0])}, {runs[1]}.* that of {sha256_once(bodies[1])}"
    with pytest.raises(LabelsError, match=both):
        compare(str(runs[0]), str(runs[1]))
    labels = [dataclasses.replace(read_run_labels(run, partial=True), subset=run.name) for run in runs]
    told = rf"{runs[0]} and {runs[1]} .*body: .*{sha256_once(bodies[0])[:16]}.*{sha256_once(bodies[1])[:16]}"
    with pytest.raises(ExportError, match=told):
        export_labels(labels, "parquet", tmp_path / "export", progress=False)
    assert not (tmp_path / "export").exists()
    sets = open_label_sets(DataConfig(labels=tuple(map(str, runs))))
    with pytest.raises(LabelsError, match=both):
        check_bodies(sets, BodyConfig(str(bodies[0])))
    check_bodies(sets[:1], BodyConfig(str(bodies[0])))
    with pytest.raises(DtoError, match=f"body.model_path .*{sha256_once(bodies[1])}.*{sha256_once(bodies[0])}"):
        check_bodies(sets[:1], BodyConfig(str(bodies[1])))
    with pytest.raises(LabelFileError, match=f"sha256 {sha256_once(bodies[0])}, body.model_path names"):
        merge_predictions(tiny.manifest, runs[0], tmp_path / "merged.parquet", body, progress=False)
    assert not (tmp_path / "merged.parquet").exists()


def test_verify_compares_the_footers_of_a_run(
    bodies: tuple[Path, Path], runs: tuple[Path, Path], tmp_path: Path
) -> None:
    mixed = shutil.copytree(runs[0], tmp_path / "mixed")
    for part in ("labels", "receipts"):
        shutil.copytree(runs[1] / part, mixed / part, dirs_exist_ok=True)
    record = mixed / "receipts" / "shard-00000.json"  # a receipt that holds, of labels that are another body's
    told = json.loads(record.read_text())
    told["config_hash"] = json.loads((mixed / "run.json").read_text())["config_hash"]
    record.write_text(json.dumps(told))
    (offence,) = verify_run(mixed).rules["every footer is of this run"].offences
    assert f"body_sha256 {sha256_once(bodies[1])}, expected {sha256_once(bodies[0])}" in offence
    assert verify_run(runs[0]).rules["every footer is of this run"].broken == 0


def test_a_manifest_names_its_folders_wherever_it_was_built_from(
    tiny: TinyDataset, bodies: tuple[Path, Path], tmp_path: Path, monkeypatch
) -> None:
    root = Path(tiny.dataset.root)
    monkeypatch.chdir(root.parent)
    dataset = dataclasses.replace(tiny.dataset, root=Path(root.name))
    build_manifest(dataset, tmp_path / "lists" / "relative.parquet", progress=False)
    manifest = Manifest.open(tmp_path / "lists" / "relative.parquet")
    assert (manifest.images_root, manifest.depth_root) == (root / "images", root / "depth")


def test_a_data_folder_that_moved_is_said_and_mended_without_a_new_manifest(body: BodyModel, tmp_path: Path) -> None:
    tiny = write_tiny_dataset(tmp_path / "data", body, images=2, shard_images=2, broken=False)
    for folder in ("images", "depth"):
        (tmp_path / "data" / folder).rename(tmp_path / folder)
    with pytest.raises(RunDirectoryError, match=r"images folder .* of .*: there is no such folder.*--images"):
        started(tmp_path / "run", tiny, tiny_config())
    assert not (tmp_path / "run").exists()
    with pytest.raises(RunDirectoryError, match=r"depth folder .* of .*: there is no such folder.*--depth"):
        started(tmp_path / "run", tiny, tiny_config(), images_root=tmp_path / "images")
    summary = run_pipeline(
        tiny.manifest,
        tmp_path / "run",
        tiny_config(),
        progress=False,
        images_root=tmp_path / "images",
        depth_root=tmp_path / "depth",
    )
    assert (summary.exit_code, summary.failed_images) == (0, 0)
