"""The Hugging Face folder: opened by `datasets`, validated and read by `mlcroissant`, where they are installed."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest
import yaml

from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.schema import LABEL_PERSON, LABELS_SCHEMA

EXTRA = "pip install 'dto-pipeline[exports]'"


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("hf") / "out"
    export_labels([runs["mpii"], runs["insta1"]], "hf", out, progress=False)
    return out


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    """The package, kept from the network and from the user's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return pytest.importorskip("datasets", reason=EXTRA)


def front_matter(folder) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_load_dataset_opens_each_subset_as_a_configuration(datasets, folder, labels, tmp_path) -> None:
    assert datasets.get_dataset_config_names(str(folder)) == ["insta1", "mpii"]
    for subset in ("mpii", "insta1"):
        opened = datasets.load_dataset(str(folder), subset, split="train", cache_dir=str(tmp_path / "cache"))
        rows = labels[subset].to_pylist()
        assert opened["image_id"][:] == [row["image_id"] for row in rows]
        assert opened.column_names == LABELS_SCHEMA.names
        for found, row in zip(opened, rows, strict=True):
            np.testing.assert_array_equal(
                [person["transl"] for person in found["persons"]], [person["transl"] for person in row["persons"]]
            )


def test_croissant_is_valid_and_its_records_are_the_labels(folder, labels) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason=EXTRA)
    dataset = mlcroissant.Dataset(str(folder / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    for record, row in zip(dataset.records("mpii"), labels["mpii"].to_pylist(), strict=True):
        assert record["mpii/image_id"].decode() == row["image_id"]
        assert record["mpii/num_persons"] == row["num_persons"]
        assert len(record["mpii/persons"]) == row["num_persons"]


def test_croissant_describes_every_column_and_every_file(folder) -> None:
    metadata = json.loads((folder / "croissant.json").read_bytes())
    files = {entry["contentUrl"]: entry["sha256"] for entry in metadata["distribution"] if "contentUrl" in entry}
    assert set(files) == {str(path.relative_to(folder)) for path in folder.rglob("*.parquet")}
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".parquet", ".md", ".json"}
    for path, digest in files.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest
    for record_set in metadata["recordSet"]:
        fields = {field["name"]: field for field in record_set["field"]}
        assert list(fields) == LABELS_SCHEMA.names
        assert len(fields["persons"]["subField"]) == LABEL_PERSON.num_fields


def test_the_card_lists_configurations_licences_and_every_column(folder) -> None:
    text = (folder / "README.md").read_text()
    assert [config["config_name"] for config in front_matter(folder)["configs"]] == ["insta1", "mpii"]
    assert "licence of mpii" in text
    assert "licence of insta1" in text
    assert set(LABELS_SCHEMA.names) <= set(re.findall(r"`(\w+)`", text))


def test_the_numbers_of_the_card_are_those_of_the_run(folder, labels) -> None:
    rows = labels["mpii"].to_pylist()
    moved = sum(person["status"] == "moved" for row in rows for person in row["persons"])
    optimized, accepted = (sum(row[name] for row in rows) for name in ("is_optimized", "is_accepted"))
    line = f"| mpii | 9 | {optimized} | {accepted} | 27 | {moved} | licence of mpii |"
    assert line in (folder / "README.md").read_text()
