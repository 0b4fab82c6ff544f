"""Merging predictions into a manifest of released labels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto_pipeline.cli import main
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest import Manifest, ManifestError
from dto_pipeline.data.manifest_build import merge as merging
from dto_pipeline.data.manifest_build.build_report import MergeReport
from dto_pipeline.data.manifest_build.merge import merge_predictions, outcomes_path
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.maths.camera import project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.schema import MANIFEST_SCHEMA, MERGE_SCHEMA
from tests.data.prediction_files import write_npz, write_parquet
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset

FOCAL = 300.0  # of every image of the tiny data set [px]
People = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, body) -> Path:
    """A manifest of nine images in three shards; 1 is missing, 2 truncated, 5 has a pose that is not finite."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body).manifest


@dataclass
class Merger:
    """Merges predictions into a manifest."""

    manifest: Path
    folder: Path
    body: BodyModel

    def __call__(self, people: People, name: str = "merged") -> tuple[Manifest, MergeReport]:
        write_npz(self.folder / f"{name}.npz", people)
        out = self.folder / f"{name}.parquet"
        report = merge_predictions(self.manifest, self.folder / f"{name}.npz", out, self.body, progress=False)
        assert report.predictions == len(people["image"]) == sum(report.outcomes.values())
        return Manifest.open(out), report

    def outcomes(self, name: str = "merged") -> list[dict]:
        return pq.read_table(outcomes_path(self.folder / f"{name}.parquet")).to_pylist()


@pytest.fixture
def merge(tiny, tmp_path, body):
    return Merger(tiny, tmp_path, body)


def rows_of(manifest: Manifest) -> list[dict]:
    return pa.concat_tables([manifest.read_shard(k) for k in range(manifest.num_shards)]).to_pylist()


def released(manifest: Path, body, images=(0, 3), keypoints: bool = True) -> People:
    """Predictions that are exactly the released people of some images, by default with keypoints on their joints."""
    found = [row for number, row in enumerate(rows_of(Manifest.open(manifest))) if number in images]
    people = [(row, person) for row in found for person in row["persons"]]
    columns = {
        "image": np.array([row["image_file"] for row, _ in people]),
        "pose": np.array([p["pose"] for _, p in people], np.float32),
        "betas": np.array([p["betas"] for _, p in people], np.float32),
        "transl": np.array([p["transl"] for _, p in people], np.float32),
        "intrinsics": np.array([[[r["fx"], 0, r["cx"]], [0, r["fy"], r["cy"]], [0, 0, 1]] for r, _ in people]),
        "det_score": np.linspace(0.6, 0.9, len(people), dtype=np.float32),
    }
    return {**columns, "keypoints": see(columns, body)} if keypoints else columns


def see(people: People, body) -> np.ndarray:
    """(n, 45, 3) keypoints on the joints of predictions, all sure."""
    joints = body.joints(*(torch.from_numpy(people[name]) for name in ("pose", "betas", "transl")))
    points = project(joints.double(), torch.from_numpy(people["intrinsics"])[:, None]).numpy()
    return np.concatenate([points, np.ones_like(points[..., :1])], axis=2).astype(np.float32)


def shifted(people: People, body, up: float) -> People:
    """The same people hovering `up` metres above their places."""
    moved = {**people, "transl": people["transl"] - np.array([0, up, 0], np.float32)}
    return {**moved, "keypoints": see(moved, body)} if "keypoints" in people else moved


def pick(people: People, index) -> People:
    return {name: values[index] for name, values in people.items()}


def joined(*parts: People) -> People:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def same_rows(one: list[dict], other: list[dict]) -> None:
    """Equal, NaN included."""
    assert repr(one) == repr(other)


def without_people(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("persons", "num_persons")}


@pytest.mark.parametrize("keypoints", [True, False])
def test_a_prediction_equal_to_a_released_person_is_always_dropped(merge, tiny, body, keypoints):
    people = released(tiny, body, range(9), keypoints)
    finite = pick(people, np.isfinite(people["pose"]).all(axis=1))
    manifest, report = merge(finite)
    assert report.outcomes["added"] == report.outcomes["duplicate"] == 0
    assert report.outcomes["matched"] == sum(row["status"] == "matched" for row in merge.outcomes()) > 15
    assert manifest.fingerprint == Manifest.open(tiny).fingerprint


def test_one_moved_by_more_than_the_threshold_is_added_and_one_by_less_dropped(merge, tiny, body):
    people = released(tiny, body)
    count = len(people["image"])
    _, near = merge(shifted(people, body, 0.1), "near")  # 0.6 heads of the stand-in body are 0.17 m
    _, far = merge(shifted(people, body, 0.25), "far")
    assert (near.outcomes["matched"], near.outcomes["added"]) == (count, 0)
    assert (far.outcomes["matched"], far.outcomes["added"]) == (0, count)


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("keypoints", lambda points: points[:, ::-1], "keypoints of .* lie elsewhere"),
        ("keypoints", lambda points: points[..., [1, 0, 2]], "keypoints of .* lie elsewhere"),
        ("bbox_xyxy", lambda box: np.concatenate([box[:, :2], [[-9, 9]] * len(box)], axis=1), "before it begins"),
        ("bbox_xyxy", lambda box: box / 100, "with a box stand elsewhere"),
        ("male_prob", lambda share: share * 100, "of male_prob outside 0 .. 1"),
        ("det_score", lambda score: score, ""),
    ],
)
def test_predictions_whose_columns_contradict_each_other_are_merged_with_a_complaint(
    merge, tiny, body, column, change, said
):
    people = released(tiny, body, range(9))
    people = pick(people, np.isfinite(people["pose"]).all(axis=1))
    points = people["keypoints"][..., :2]
    people["bbox_xyxy"] = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
    people["male_prob"] = np.full(len(points), 0.5, np.float32)
    _, report = merge({**people, column: change(people[column])})
    assert re.search(said, report.complaint) if said else report.complaint == ""


@pytest.mark.parametrize("keypoints", [False, True])
def test_without_keypoints_or_with_unsure_ones_half_the_overlap_decides(merge, tiny, body, keypoints):
    people = released(tiny, body, keypoints=keypoints)
    near, far = (shifted(people, body, up) for up in (0.3, 0.8))  # 0.3: above the threshold of keypoints
    for some in (near, far) if keypoints else ():
        some["keypoints"][..., 2] = 0.1
    assert merge(near, "near")[1].outcomes["added"] == 0
    assert merge(far, "far")[1].outcomes["added"] == len(people["image"])


def test_released_people_keep_order_and_content_and_added_ones_follow_by_score(merge, tiny, body):
    people = shifted(released(tiny, body), body, 0.5)
    before, after = rows_of(Manifest.open(tiny)), rows_of(merge(people)[0])
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        same_rows(old["persons"], new["persons"][: old["num_persons"]])
        added = new["persons"][old["num_persons"] :]
        assert len(added) == (old["num_persons"] if number in (0, 3) else 0)
        assert new["num_persons"] == len(new["persons"])
        assert all(p["source_row"] == -1 and p["problem"] is None and p["mask_rle"] is None for p in added)
        assert [p["det_score"] for p in added] == sorted((p["det_score"] for p in added), reverse=True)
        assert [p["person_index"] for p in new["persons"]] == list(range(new["num_persons"]))
        same_rows([without_people(old)], [without_people(new)])
    np.testing.assert_array_equal(
        sorted(p["transl"] for row in after for p in row["persons"] if p["source_row"] == -1),
        sorted(people["transl"].tolist()),
    )


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_the_order_of_predictions_changes_nothing(merge, tiny, body, random):
    same = released(tiny, body)
    others = shifted(same, body, 0.5)
    close = shifted(same, body, 0.45)  # duplicates of the others
    people = joined(same, others, close)
    people["det_score"][:] = 0.7  # only their content differs
    order = list(range(len(people["image"])))
    random.shuffle(order)
    plain, report = merge(people, "plain")
    shuffled, report_shuffled = merge(pick(people, order), "shuffled")
    assert report.outcomes["added"] > 0
    assert report.outcomes["duplicate"] > 0
    assert plain.fingerprint == shuffled.fingerprint
    assert report.to_json() == report_shuffled.to_json()


def test_of_two_predictions_of_one_missing_person_the_surer_is_added(merge, tiny, body):
    one = pick(shifted(released(tiny, body), body, 0.5), [0])
    manifest, report = merge(joined(*({**one, "det_score": np.array([s], np.float32)} for s in (0.6, 0.8))))
    assert (report.outcomes["added"], report.outcomes["duplicate"]) == (1, 1)
    assert rows_of(manifest)[0]["persons"][-1]["det_score"] == pytest.approx(0.8)
    assert [row["same_as_prediction_row"] for row in merge.outcomes()] == [1, -1]


def test_a_second_prediction_of_a_released_person_is_a_duplicate_however_sure(merge, tiny, body):
    one = pick(released(tiny, body), [0])
    close = {**shifted(one, body, 0.02), "det_score": np.array([0.99], np.float32)}
    _, report = merge(joined(one, close))
    assert (report.outcomes["matched"], report.outcomes["duplicate"], report.outcomes["added"]) == (1, 1, 0)
    assert [row["status"] for row in merge.outcomes()] == ["matched", "duplicate"]


def test_matched_predictions_are_nobodys_duplicates(merge, tiny, body):
    people = pick(released(tiny, body), [0, 1])
    people["transl"][1], people["betas"][1] = people["transl"][0], people["betas"][0]  # one body, two sets of keypoints
    merge(people)
    assert [(row["status"], row["same_as_prediction_row"]) for row in merge.outcomes()] == [("matched", -1)] * 2


def test_a_released_person_goes_to_the_prediction_most_like_it_not_to_the_surest(merge, tiny, body):
    people = pick(released(tiny, body), [0, 1])
    first, second = people["keypoints"]
    half = np.where(np.arange(45)[:, None] < 23, first, second)  # 23 of 45 keypoints are the first person's
    one = {**pick(people, [0]), "keypoints": half[None], "det_score": np.array([0.9], np.float32)}
    other = {**pick(people, [0]), "det_score": np.array([0.6], np.float32)}
    merge(joined(one, other))
    assert [row["status"] for row in merge.outcomes()] == ["duplicate", "matched"]


def test_what_cannot_be_used_is_refused_with_its_reason(merge, tiny, body):
    people = pick(shifted(released(tiny, body), body, 0.5), [0] * 9)
    people["image"] = np.array(["000000.jpg"] * 6 + ["nobody.jpg", "000001.jpg", "../000000.jpg"])
    people["det_score"] = np.array([0.9, 0.2, np.nan, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], np.float32)
    people["pose"][3, 7] = np.nan
    people["transl"][4, 2] = -1
    people["intrinsics"][5, 0, 0] = -5
    _, report = merge(people)
    words = ["added", "below_min_score", "invalid_score", "invalid_label", "invalid_label", "invalid_camera"]
    words += ["image_unknown", "image_unusable", "image_unknown"]
    outcomes = merge.outcomes()
    assert [row["status"] for row in outcomes] == words
    assert outcomes[3]["message"] == "pose is not finite"
    assert "z <= 0" in outcomes[4]["message"]
    assert "leaves its folder" in outcomes[8]["message"]
    assert report.refused["invalid_label: pose is not finite"] == 1
    assert report.outcomes["image_unknown"] == 2
    assert "below_min_score" in report.as_table()


def test_a_merge_that_could_use_no_prediction_ends_with_1_and_the_reason(merge, tiny, body, capsys):
    people = shifted(released(tiny, body), body, 0.5)
    for name, change, code in (
        ("others", {"image": np.array([f"x/{image}" for image in people["image"]])}, 1),
        ("low", {"det_score": np.full(len(people["image"]), 0.1, np.float32)}, 0),
    ):
        merge({**people, **change}, name)
        places = [str(merge.folder / f"{name}{ending}") for ending in (".npz", "-again.parquet")]
        options = ["--set", "body.model_path=demo", "--quiet"]
        assert main(["manifest", "merge", str(tiny), places[0], "-o", places[1], *options]) == code
        said = capsys.readouterr().err
        assert ("predictions could be used: mostly image_unknown; mend it" in said) == (code == 1)


def test_a_mask_that_fits_is_carried_and_one_that_does_not_is_refused(merge, tiny, body):
    people = pick(shifted(released(tiny, body), body, 0.5), [0, 1, 1])
    mask = np.zeros((120, 160), bool)
    mask[10:50, 20:40] = True
    people["mask_rle"] = np.array([encode_rle(mask), encode_rle(mask.T), b"~~~"])
    people["mask_height"], people["mask_width"] = np.array([120, 160, 120]), np.array([160, 120, 160])
    manifest, report = merge(people)
    row = rows_of(manifest)[0]
    assert row["persons"][-1]["mask_rle"] == encode_rle(mask)
    assert row["mask_origin"] == "sidecar+predictions"
    assert row["attribute_origin"] == "sidecar"
    assert report.outcomes["added"] == 1
    assert sum(report.refused.values()) == 2


def test_a_prediction_of_another_camera_lands_where_it_was_seen(merge, tiny, body):
    same = pick(released(tiny, body, keypoints=False), [0])
    here = joined(same, shifted(same, body, 0.9))
    zoom, stretch = np.array([[2, 1, 1], [1, 2, 1], [1, 1, 1]]), np.array([1, 1, 2], np.float32)
    there = {**here, "intrinsics": here["intrinsics"] * zoom, "transl": here["transl"] * stretch}
    manifest, report = merge(there)
    assert (report.outcomes["matched"], report.outcomes["added"]) == (1, 1)
    np.testing.assert_allclose(rows_of(manifest)[0]["persons"][-1]["transl"], here["transl"][1], atol=0.1)


def test_focal_alone_means_the_image_centre_and_no_camera_the_labels(merge, tiny, body):
    people = released(tiny, body)
    bare = {name: values for name, values in people.items() if name != "intrinsics"}
    count = len(people["image"])
    _, none = merge(bare, "none")
    _, focal = merge({**bare, "focal": np.full(count, FOCAL)}, "focal")
    assert none.outcomes["matched"] == focal.outcomes["matched"] == count


def test_a_crowd_beyond_the_limit_is_cut_to_the_surest(merge, tiny, body, monkeypatch):
    monkeypatch.setattr("dto_pipeline.data.manifest_build.merge.MAX_PREDICTIONS", 3)
    people = pick(shifted(released(tiny, body), body, 0.5), [0] * 5)
    people["det_score"] = np.linspace(0.6, 0.9, 5, dtype=np.float32)
    _, report = merge(people)
    assert report.outcomes == {"added": 1, "duplicate": 2, "crowd_too_large": 2}
    assert [row["status"] for row in merge.outcomes()][:2] == ["crowd_too_large"] * 2


def test_images_may_be_called_by_file_path_or_id(merge, tiny, body):
    people = pick(shifted(released(tiny, body), body, 0.5), [0, 1])
    people["image"] = np.array(["tiny/000000.jpg", "./000000.jpg"])
    assert merge(people)[1].outcomes["added"] == 2


def test_shards_schema_and_origin_are_kept_and_both_inputs_named(merge, tiny, body):
    old = Manifest.open(tiny)
    people = shifted(released(tiny, body), body, 0.5)
    manifest, report = merge(people)
    assert [size.images for size in manifest.shard_sizes] == [size.images for size in old.shard_sizes]
    assert manifest.num_people == old.num_people + report.outcomes["added"]
    assert manifest.read_shard(0).schema.equals(MANIFEST_SCHEMA, check_metadata=False)
    assert manifest.fingerprint == report.fingerprint != old.fingerprint
    assert (manifest.dataset, manifest.images_root) == (old.dataset, old.images_root)
    assert manifest.metadata["label_files"] == old.metadata["label_files"]
    (entry,) = json.loads(manifest.metadata["merged"])
    assert entry["manifest"]["sha256"] == sha256_file(tiny)
    assert entry["manifest"]["fingerprint"] == old.fingerprint
    assert entry["predictions"]["sha256"] == sha256_file(merge.folder / "merged.npz")
    assert json.loads((merge.folder / "merged.report.json").read_text()) == report.to_json()
    assert pq.read_schema(outcomes_path(manifest.path)).equals(MERGE_SCHEMA, check_metadata=False)


def test_equal_input_gives_identical_bytes(merge, tiny, body):
    people = shifted(released(tiny, body), body, 0.5)
    files = [merge.folder / name for name in ("merged.parquet", "merged.predictions.parquet", "merged.report.json")]
    merge(people)
    first = [path.read_bytes() for path in files]
    merge(people)
    assert [path.read_bytes() for path in files] == first


def test_a_merge_that_is_ended_before_its_report_leaves_no_manifest(merge, tiny, body, monkeypatch):
    def end(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "write_bytes", end)
    with pytest.raises(KeyboardInterrupt):
        merge(shifted(released(tiny, body), body, 0.5))
    assert not (merge.folder / "merged.parquet").exists()


def test_merging_again_adds_nobody_and_remembers_both_merges(merge, tiny, body):
    people = shifted(released(tiny, body), body, 0.5)
    once, _ = merge(people)
    again = Merger(once.path, merge.folder, body)
    twice, report = again(people, "twice")
    assert (report.outcomes["added"], report.outcomes["matched"]) == (0, len(people["image"]))
    assert twice.fingerprint == once.fingerprint
    assert len(json.loads(twice.metadata["merged"])) == 2


def test_npz_and_parquet_say_the_same(merge, tiny, body):
    people = shifted(released(tiny, body), body, 0.5)
    manifest, _ = merge(people)
    write_parquet(merge.folder / "people.parquet", people, row_group_size=3)
    out = merge.folder / "parquet.parquet"
    merge_predictions(tiny, merge.folder / "people.parquet", out, body, progress=False)
    assert Manifest.open(out).fingerprint == manifest.fingerprint


def test_an_input_is_never_replaced(merge, tiny, body):
    merge(released(tiny, body))
    with pytest.raises(ManifestError, match="choose another name"):
        merge_predictions(tiny, merge.folder / "merged.npz", tiny, body, progress=False)


def test_added_people_go_through_a_run_and_keep_their_origin(merge, tiny, body):
    before = Manifest.open(tiny).num_people
    people = shifted(released(tiny, body), body, 0.4)
    manifest, report = merge(people)
    summary = run_pipeline(manifest.path, merge.folder / "run", tiny_config(), progress=False)
    assert summary.persons == before + report.outcomes["added"]
    tables = [read_labels(path) for path in sorted((merge.folder / "run/labels").iterdir())]
    labels = pa.concat_tables(tables).to_pylist()
    added = [p for row in labels for p in row["persons"] if p["source_row"] == -1]
    assert sorted(p["det_score"] for p in added) == pytest.approx(sorted(people["det_score"].tolist()))
    assert all(np.isnan(p["det_score"]) for row in labels for p in row["persons"] if p["source_row"] >= 0)
