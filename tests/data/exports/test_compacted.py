"""Compacted Parquet and its view of one row per person."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline.data.columns import rows_sha256
from dto_pipeline.data.exports import compacted, formats
from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.exports.job import ExportJob, Selection
from dto_pipeline.data.labels import read_label_metadata, read_labels
from dto_pipeline.data.parquet import footer_text, open_parquet
from dto_pipeline.schema import PERSONS_SCHEMA


def test_compacted_rows_are_those_of_the_shards(runs, labels, tmp_path) -> None:
    export_labels([runs["mpii"], runs["insta1"]], "parquet", tmp_path / "out", progress=False)
    for subset in ("mpii", "insta1"):
        file = tmp_path / "out" / "data" / subset / f"{subset}-00000-of-00001.parquet"
        assert rows_sha256(read_labels(file)) == rows_sha256(labels[subset])


def test_the_footer_holds_what_all_shards_share_and_nothing_of_one_shard(runs, tmp_path) -> None:
    export_labels([runs["mpii"]], "parquet", tmp_path / "out", progress=False)
    footer = read_label_metadata(tmp_path / "out/data/mpii/mpii-00000-of-00001.parquet")
    assert footer["licence"] == "licence of mpii"
    assert footer["config_hash"] == runs["mpii"].config_hash
    assert not footer.keys() & {"shard", "shard_key", "rows_sha256", "images"}


def test_rows_spread_over_files_of_full_row_groups(runs, labels, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compacted, "ROWS_PER_GROUP", 2)
    monkeypatch.setattr(compacted, "FILE_GROUPS", 2)
    report = export_labels([runs["mpii"]], "parquet", tmp_path / "out", progress=False)
    assert [file["path"] for file in report.files] == [f"data/mpii/mpii-{k:05d}-of-00003.parquet" for k in range(3)]
    assert [file["images"] for file in report.files] == [4, 4, 1]
    files = [tmp_path / "out" / file["path"] for file in report.files]
    assert rows_sha256(pa.concat_tables([read_labels(file) for file in files])) == rows_sha256(labels["mpii"])
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [2, 2, 1]


def test_images_count_as_written_when_their_row_group_is(runs, tmp_path, monkeypatch) -> None:
    for name in ("ROWS_PER_GROUP", "PERSON_GROUP_ROWS"):
        monkeypatch.setattr(compacted, name, 4)
    subsets = formats._load_subsets([runs["mpii"]], Selection(), False, lambda images: None)
    steps: dict[str, list[int]] = {"parquet": [], "persons": []}
    for name, written in steps.items():
        export = ExportJob(tmp_path, tmp_path / name, Selection(), subsets, written.append)
        formats.FORMATS[name].write(export)
    assert steps["parquet"] == [4, 4, 1]
    assert (sum(steps["persons"]), len(steps["persons"])) == (9, 7)  # of 27 people


def test_a_person_has_one_row_with_what_is_known_of_the_image(runs, labels, tmp_path) -> None:
    export_labels([runs["mpii"]], "persons", tmp_path / "out", Selection(), progress=False)
    file = tmp_path / "out/data/mpii/mpii-00000-of-00001.parquet"
    table = pq.read_table(file)
    assert table.schema.equals(PERSONS_SCHEMA)
    expected = [(row, person) for row in labels["mpii"].to_pylist() for person in row["persons"]]
    assert table.num_rows == len(expected) == 27
    for found, (row, person) in zip(table.to_pylist(), expected, strict=True):
        assert (found["image_id"], found["image_status"], found["fx"]) == (row["image_id"], row["status"], row["fx"])
        assert (found["person_index"], found["status"]) == (person["person_index"], person["status"])
        assert found["transl"] == person["transl"]
        assert found["message"] == person["message"]
    with open_parquet(file, AssertionError) as opened:
        assert footer_text(opened)["schema"] == "dto-persons/1"


def test_an_image_split_over_files_of_persons_is_counted_once(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(compacted, "PERSON_GROUP_ROWS", 2)
    monkeypatch.setattr(compacted, "PERSON_FILE_GROUPS", 2)
    report = export_labels([runs["mpii"]], "persons", tmp_path / "out", progress=False)
    assert sum(file["images"] for file in report.files) == 9
    assert [file["persons"] for file in report.files] == [4, 4, 4, 4, 4, 4, 3]
