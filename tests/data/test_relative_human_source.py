"""RelativeHuman's annotation files as the originals write them: np.savez of a dict; read without running anything."""

import numpy as np
import pytest

from dto_pipeline.data.inert_pickle import UnsafePickle
from dto_pipeline.data.sources.relative_human import read_annotations
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.evaluate.rh_evaluation import GROUPS, EvaluatedImage, evaluate_relative_human
from tests.pickle_streams import SENTINEL, Armed


def person(**changes):
    kp2d = np.arange(42, dtype=np.float64).reshape(14, 3)
    whole = {"bbox": [1, 2, 30, 40], "bbox_wb": [0, 0, 50, 60], "body_type": 0, "occluded_by_others": 1}
    return {"kp2d": kp2d, "depth_id": 2, "age": 1, "gender": 1, **whole, **changes}


def written(folder, annots):
    np.savez(folder / "val_annots.npz", annots=annots)
    return folder / "val_annots.npz"


def test_annotations_read_back_equal(tmp_path):
    flat = list(np.arange(57.0))
    annots = {
        "1234567.jpg": [person(), person(kp2d=flat, depth_id=np.int64(0), age=np.int32(3))],
        "9.jpg": [person(kp2d=None, depth_id=-1, age=-1, gender=-1)],
        "none.jpg": [],
    }
    found = read_annotations(written(tmp_path, annots))
    assert found.problems == ()
    assert {name: len(people) for name, people in found.images.items()} == {"1234567.jpg": 2, "9.jpg": 1, "none.jpg": 0}
    first, second = found.images["1234567.jpg"]
    np.testing.assert_array_equal(first.kp2d, np.arange(42).reshape(14, 3))
    np.testing.assert_array_equal(second.kp2d, np.arange(57).reshape(19, 3))
    assert (first.depth_id, first.age, first.bbox_xyxy) == (2, 1, (1.0, 2.0, 30.0, 40.0))
    assert (second.depth_id, second.age) == (0, 3)
    (nobody,) = found.images["9.jpg"]
    assert (nobody.kp2d, nobody.depth_id, nobody.age) == (None, -1, -1)


def test_what_cannot_be_understood_is_unknown_and_reported(tmp_path):
    people = [
        person(kp2d=np.zeros((17, 3))),
        person(depth_id=1.5, age=7, gender="f", bbox=[1, 2, 3]),
        "nobody",
        {"depth_id": 1, "age": 0},
    ]
    found = read_annotations(written(tmp_path, {"a.jpg": people}))
    reasons = [":".join(entry.reason.split(":")[:2]) for entry in found.problems]
    assert reasons[:4] == ["person 0: kp2d", "person 1: depth_id", "person 1: age", "person 1: bbox"]
    assert reasons[4:] == ["person 2: is str, expected a dict"]
    first, second, _, last = found.images["a.jpg"]  # positions stay
    assert (first.kp2d, first.depth_id, second.age, last.kp2d) == (None, 2, -1, None)


def test_hostile_annotations_are_refused_by_name_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickle, match=r"val_annots\.npz, array 'annots'.*(posix|nt).*system"):
        read_annotations(written(tmp_path, {"a.jpg": [person(kp2d=Armed())]}))
    assert not (tmp_path / SENTINEL).exists()


@pytest.mark.parametrize("annots", [np.zeros(3), [1, 2], {"a.jpg": person()}, {"a.jpg": None}])
def test_files_of_another_kind_are_refused(tmp_path, annots):
    with pytest.raises(LabelFileError, match=r"val_annots\.npz, key 'annots'.*expected one dict"):
        read_annotations(written(tmp_path, annots))


def test_annotations_fit_the_metric(tmp_path):
    kp2d = np.column_stack([np.tile([0.0, 20.0], 7), np.arange(14) * 5.0, np.ones(14)])
    people = [person(kp2d=kp2d, depth_id=0, age=0), person(kp2d=np.add(kp2d, [200, 0, 0]), depth_id=1, age=3)]
    found = read_annotations(written(tmp_path, {"a.jpg": people}))
    keypoints = np.stack([kp2d[:, :2], np.add(kp2d[:, :2], [200, 0])]).astype(np.float32)
    image = EvaluatedImage("a.jpg", found.images["a.jpg"], keypoints, np.array([3.0, 5.0], np.float32))
    result = evaluate_relative_human([image])
    assert [result.share(f"pcdr_{group}") for group in GROUPS] == [1.0, 1.0, None, None, 1.0]
