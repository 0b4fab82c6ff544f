"""MA-HMR's npz: readable by numpy of both generations, equal to the labels."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.exports.job import Selection
from dto_pipeline.data.exports.ma_hmr import REPEATED, pickled_array
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, safe_loads

OLD_NUMPY = "1.23.5"
CHECK = """
import sys, numpy as np
annots = np.load(sys.argv[1], allow_pickle=True)["annots"].item()
assert np.__version__ == sys.argv[2], np.__version__
people = [person for key in annots for person in annots[key]]
total = sum(float(values.sum(dtype=np.float64)) for person in people for values in person["smpl_param"].values())
arrays = [values for person in people for part in person.values() for values in part.values()]
kinds = {values.dtype.str + str(values.shape) for values in arrays}
assert all(person["cam_param"] is annots[key][0]["cam_param"] for key in annots for person in annots[key])
print(len(annots), len(people), repr(total), *sorted(kinds))
"""


def load(path: Path) -> dict:
    return np.load(path, allow_pickle=True)["annots"].item()


def test_the_file_holds_the_labels_of_accepted_images_for_our_own_reader_too(runs, labels, tmp_path) -> None:
    export_labels([runs["mpii"]], "ma-hmr", tmp_path / "out", progress=False)
    path = tmp_path / "out" / "MPII_CHMR_SMPL_OPT.npz"
    annots, safe = load(path), NpzFile(path).array("annots", NUMPY_ONLY).item()
    rows = [row for row in labels["mpii"].to_pylist() if row["is_accepted"]]
    assert list(annots) == [row["image_path"] for row in rows]
    for row in rows:
        expected = [person for person in row["persons"] if person["status"] != "invalid_label"]
        for found, person in zip(annots[row["image_path"]], expected, strict=True):
            for name, column in (("shape", "betas"), ("pose", "pose"), ("trans", "transl")):
                assert found["smpl_param"][name].dtype == np.float32
                np.testing.assert_array_equal(found["smpl_param"][name], np.array(person[column], np.float32))
                assert found["smpl_param"][name].flags.writeable
            np.testing.assert_array_equal(found["cam_param"]["focal"], np.array([row["fx"], row["fy"]], np.float32))
            np.testing.assert_array_equal(found["cam_param"]["princpt"], np.array([row["cx"], row["cy"]], np.float32))
            assert found["cam_param"] is annots[row["image_path"]][0]["cam_param"]
        last = safe[row["image_path"]][-1]["smpl_param"]["pose"]
        np.testing.assert_array_equal(last, annots[row["image_path"]][-1]["smpl_param"]["pose"])
    assert len({id(people[0]["cam_param"]) for people in annots.values()}) == len(annots) > 1


def test_both_insta_subsets_go_to_one_file_and_shared_images_count_once(runs, tmp_path) -> None:
    report = export_labels([runs["insta2"], runs["insta1"]], "ma-hmr", tmp_path / "out", progress=False)
    assert [file["path"] for file in report.files] == ["INSTA_CHMR_SMPL_OPT.npz"]
    annots = load(tmp_path / "out" / "INSTA_CHMR_SMPL_OPT.npz")
    assert all(key.startswith("insta-train/") for key in annots)
    assert report.files[0]["images"] == len(annots) == 4
    assert sum(report.notes.values()) == 4


def test_images_of_one_insta_subset_only_are_all_there(runs, tmp_path) -> None:
    first = dataclasses.replace(runs["insta1"], files=runs["insta1"].files[:1])
    report = export_labels([first, runs["insta2"]], "ma-hmr", tmp_path / "part", progress=False)
    export_labels([runs["insta2"]], "ma-hmr", tmp_path / "whole", progress=False)
    part, whole = (load(tmp_path / name / "INSTA_CHMR_SMPL_OPT.npz") for name in ("part", "whole"))
    assert part.keys() == whole.keys()
    assert 0 < report.notes[REPEATED] < len(whole)
    assert {key: len(people) for key, people in part.items()} == {key: len(people) for key, people in whole.items()}


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(0, 4), max_size=6),
    st.integers(1, 7),
)
def test_any_images_cut_into_any_parts_read_back_as_they_were(people_of: dict[str, int], images: int) -> None:
    random = np.random.default_rng(0)
    annots = {key: [{"pose": random.normal(size=72).astype(np.float32)}] * count for key, count in people_of.items()}
    entries = list(annots.items())
    parts = [dict(entries[start : start + images]) for start in range(0, len(entries), images)]
    stream = b"".join(pickled_array([{}, *parts]))
    for found in (safe_loads(stream, object_arrays=True).item(), pickle.loads(stream).item()):
        assert {key: len(people) for key, people in found.items()} == people_of
        for key, people in found.items():
            for person, expected in zip(people, annots[key], strict=True):
                np.testing.assert_array_equal(person["pose"], expected["pose"])


@pytest.mark.slow
def test_numpy_of_both_generations_read_the_same_numbers(runs, tmp_path) -> None:
    export_labels([runs["mpii"]], "ma-hmr", tmp_path / "out", Selection(persons="valid"), progress=False)
    path = tmp_path / "out" / "MPII_CHMR_SMPL_OPT.npz"
    old = old_numpy(tmp_path / "old")
    said = []
    for environment, version in (({**os.environ, "PYTHONPATH": old}, OLD_NUMPY), (dict(os.environ), np.__version__)):
        command = [sys.executable, "-W", "error", "-c", CHECK, str(path), version]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        said.append(done.stdout)
    assert said[0] == said[1]
    assert said[0].split()[:2] == ["9", "26"]


def old_numpy(folder: Path) -> str:
    """A folder with numpy of the first generation; skips where the package index has none for this Python."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*install, "--target", str(folder), f"numpy=={OLD_NUMPY}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"numpy {OLD_NUMPY} cannot be installed here: {done.stderr.strip().splitlines()[-1][:200]}")
    return str(folder)
