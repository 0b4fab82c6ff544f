"""The card names what made labels, uncertainty is exported, and runs of other provenance are mixed only on request."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dto_pipeline.cli import main
from dto_pipeline.data.exports.formats import FORMATS, export_labels
from dto_pipeline.data.exports.job import ExportError, Selection, describe_provenance
from dto_pipeline.data.labels import read_labels, unpack_covariance
from dto_pipeline.data.people import read_people
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import read_run_labels
from tests.run.chaos import tiny_config


@pytest.fixture(scope="module")
def joint(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the solver that gives uncertainties, of the same images as subset tiny."""
    folder = tmp_path_factory.mktemp("joint") / "run"
    config = tiny_config()
    config = dataclasses.replace(config, solver=dataclasses.replace(config.solver, mode="joint"))
    run_pipeline(tiny.manifest, folder, config, progress=False)
    return folder


def test_runs_of_other_provenance_are_refused_with_the_difference_unless_mixed(runs, joint, tmp_path) -> None:
    unlike = [runs["mpii"], read_run_labels(joint)]
    for name in FORMATS:
        with pytest.raises(ExportError, match=r"not made alike \(solver: paper and joint; config_hash.*--mixed"):
            export_labels(unlike, name, tmp_path / name, progress=False)
    export_labels(unlike, "hf", tmp_path / "hf", progress=False, mixed=True)
    card = (tmp_path / "hf/README.md").read_text()
    assert "| subset | solver | depth | body model | config | manifest |" in card
    assert f"`{runs['mpii'].config_hash[:16]}`" in card
    for subset, solver in (("mpii", "paper"), ("tiny", "joint")):
        assert re.search(
            rf"\| {subset} \| {solver} \| maps from files \(disparity\) \| \w+ \(sha256 [0-9a-f]{{16}}\) \|", card
        )
    told = ["--format", "parquet", "--quiet", "-o", str(tmp_path / "out")]
    assert main(["export", unlike[0].name, str(joint), *told]) == 2
    assert main(["export", unlike[0].name, str(joint), *told, "--mixed"]) == 0


def test_a_depth_network_is_named_with_its_revision() -> None:
    depth = {"source": "model", "model": "depth-anything/Depth-Anything-V2-Large-hf", "revision": "abc"}
    config = json.dumps({"solver": {"mode": "paper"}, "depth": depth, "body": {"model_path": "/data/bodies/"}})
    found = describe_provenance({"config": config, "body_sha256": "f" * 64, "config_hash": "h"})
    assert found["depth"] == "depth-anything/Depth-Anything-V2-Large-hf at abc"
    assert found["body"] == f"bodies (sha256 {'f' * 16})"
    assert describe_provenance({}) == dict.fromkeys(("solver", "depth", "body", "config_hash"), "unknown")


def test_uncertainty_is_exported_in_every_format_that_has_a_place_for_it(joint, tmp_path) -> None:
    run = read_run_labels(joint)
    rows = [row for file in run.files for row in read_labels(file.path).to_pylist()]
    people = [person for row in rows for person in row["persons"]]
    wanted = {name: np.array([p[name] for p in people], np.float32) for name in ("z_sigma_m", "height_sigma_m")}
    assert np.isfinite(wanted["z_sigma_m"]).any()
    for name in ("camerahmr", "ma-hmr", "persons", "parquet"):
        export_labels([run], name, tmp_path / name, Selection(), progress=False)
    with np.load(tmp_path / "camerahmr/tiny-dto.npz", allow_pickle=False) as flat:
        for name, values in wanted.items():
            np.testing.assert_array_equal(flat[name], values)
    annots = np.load(tmp_path / "ma-hmr/TINY_CHMR_SMPL_OPT.npz", allow_pickle=True)["annots"].item()  # our own file
    for name, values in wanted.items():
        found = np.concatenate([person[name] for crowd in annots.values() for person in crowd])
        np.testing.assert_array_equal(found, values)
    assert read_people(tmp_path / "ma-hmr/TINY_CHMR_SMPL_OPT.npz").num_people == len(people)
    (file,) = (tmp_path / "persons/data/tiny").iterdir()
    np.testing.assert_array_equal(pq.read_table(file)["z_sigma_m"].to_numpy(), wanted["z_sigma_m"])
    (file,) = (tmp_path / "parquet/data/tiny").iterdir()
    for row, own in zip(read_labels(file).to_pylist(), rows, strict=True):
        assert (row["z_covariance"] is None) == (own["z_covariance"] is None)
        if row["z_covariance"] is not None:
            matrix = unpack_covariance(np.array(row["z_covariance"]), row["num_persons"])
            sigmas = np.array([person["z_sigma_m"] for person in row["persons"]])
            np.testing.assert_allclose(np.sqrt(np.diag(matrix)), sigmas, rtol=1e-5)


def test_a_run_without_uncertainty_writes_the_published_entries_only(runs, tmp_path) -> None:
    export_labels([runs["mpii"]], "ma-hmr", tmp_path / "out", progress=False)
    annots = np.load(tmp_path / "out/MPII_CHMR_SMPL_OPT.npz", allow_pickle=True)["annots"].item()
    assert {key for crowd in annots.values() for person in crowd for key in person} == {"smpl_param", "cam_param"}
