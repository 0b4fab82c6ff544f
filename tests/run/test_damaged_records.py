"""Records that a disk or a hand has changed: said in one sentence, told by `verify`, mended by `dto run`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dto_pipeline.cli import main
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.receipts import RecordInvalid, parse_receipt
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, parse_failure, read_identity
from dto_pipeline.run.lease import parse_lease
from dto_pipeline.run.report import read_status
from dto_pipeline.view.verify import verify_run
from tests.run.chaos import label_bytes, tiny_config

DEEP = b"[" * 10_000 + b"]" * 10_000


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def changed(value, path, new):
    """A copy of nested dicts with another value at a path; `KeyError` in its place takes the key away."""
    copied = json.loads(json.dumps(value))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    if new is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copied


@pytest.mark.parametrize("data", [DEEP, b'{"schema": "\xff"}', b"\x00\xff", b"[]", b"7", b"null", b""])
@pytest.mark.parametrize("verb", ["status", "verify", "view", "run"])
def test_a_run_json_that_is_damaged_is_one_sentence_and_exit_code_2(copy, tiny, tmp_path, capsys, data, verb):
    (copy / "run.json").write_bytes(data)
    more = {"view": ["-o", str(tmp_path / "v.png")], "run": ["-o", str(copy), "--workers=0", "--quiet"]}.get(verb, [])
    what = str(tiny.manifest if verb == "run" else copy)
    code = main([verb, what, *more, *(["--set", "body.model_path=demo"] if verb == "run" else [])])

    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dto {verb}: ")
    assert "run.json" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (["manifest"], KeyError),
        (["versions"], KeyError),
        (["config", "refine", "accept_below"], KeyError),
        (["config", "body"], KeyError),
        (["config"], [1]),
        (["config", "solver"], None),
        (["config", "refine", "accept_below"], float("nan")),
        (["config", "joint", "hold_z_sigma"], "wide"),
        (["manifest", "shards"], 10**22),
        (["manifest", "shards"], True),
        (["manifest", "images"], -5),
        (["manifest", "persons"], 1.5),
        (["manifest", "subset"], 7),
        (["versions"], "2.13"),
        (["config_hash"], None),
    ],
)
def test_a_run_json_that_lacks_a_key_or_says_what_cannot_be_is_named(copy, path, new):
    place = copy / "run.json"
    place.write_text(json.dumps(changed(json.loads(place.read_text()), path, new)))

    with pytest.raises(RunDirectoryError, match=r"run\.json .*put run\.json back"):
        read_identity(RunDirectory(copy))


@pytest.mark.parametrize("new", [float("nan"), float("inf"), True, -5, 1e22, 10**22, "7", None, [1]])
@pytest.mark.parametrize("path", [["rows"], ["wall_s"], ["finished_at"], ["label_bytes"], ["stage_seconds", "read"]])
def test_a_receipt_with_an_impossible_number_is_void_and_verify_says_so(copy, path, new):
    place = RunDirectory(copy).receipt_file(0)
    before = place.read_bytes()
    place.write_text(json.dumps(changed(json.loads(before), path, new)))

    with pytest.raises(RecordInvalid, match=path[0]):
        parse_receipt(place.read_bytes(), place)
    assert list(read_status(copy).void) == [0]


def test_a_receipt_whose_counts_do_not_add_up_is_void(copy):
    place = RunDirectory(copy).receipt_file(0)
    receipt = json.loads(place.read_bytes())
    for path, new in ((["persons"], receipt["persons"] + 1), (["image_status"], {"optimized": 99})):
        with pytest.raises(RecordInvalid, match="counts"):
            parse_receipt(json.dumps(changed(receipt, path, new)).encode(), place)


def test_verify_and_status_name_a_void_receipt_and_a_start_mends_it(copy, tiny, finished, capsys):
    place = RunDirectory(copy).receipt_file(1)
    place.write_text(json.dumps({**json.loads(place.read_bytes()), "wall_s": float("nan")}))

    assert main(["verify", str(copy)]) == 1
    assert "`dto run` does it again" in capsys.readouterr().out
    main(["status", str(copy)])
    assert "void     shard 1: " in (said := capsys.readouterr().out)
    assert "`dto run` does it again" in said
    summary = run_pipeline(tiny.manifest, copy, tiny_config(), progress=False)
    assert (summary.exit_code, summary.done_now) == (0, 1)
    assert label_bytes(copy) == label_bytes(finished)
    assert verify_run(copy).exit_code == 0


@pytest.mark.parametrize("data", [DEEP, b"\xff", b'{"schema": "dto-lease/1", "pid": NaN}', b"[]"])
def test_a_damaged_lease_counts_as_none(data):
    assert parse_lease(data) is None


@pytest.mark.parametrize("new", [float("nan"), True, -5, "3"])
def test_a_failure_record_with_an_impossible_number_is_named(new):
    failure = {"schema": "dto-failure/1", "shard": 0, "attempts": new, "given_up": False, "error": "", "worker": ""}
    with pytest.raises(RecordInvalid, match="attempts"):
        parse_failure(json.dumps({**failure, "failed_at": 0.0}).encode(), Path("x.json"))


def flip_a_byte(place):
    data = bytearray(place.read_bytes())
    data[len(data) // 3] ^= 1
    place.write_bytes(data)


def zero_the_middle(place):
    data = place.read_bytes()
    place.write_bytes(data[:100] + bytes(200) + data[300:])


def count_otherwise(place):
    receipt = place.parents[1] / "receipts" / f"{place.stem}.json"
    counts = json.loads(receipt.read_bytes())
    words = counts["person_status"]
    first, *_ = words
    counts["person_status"] = {**words, first: words[first] - 1, "no_fit": words.get("no_fit", 0) + 1}
    receipt.write_text(json.dumps(counts))


@pytest.mark.parametrize("damage", [flip_a_byte, zero_the_middle, count_otherwise])
def test_what_verify_finds_in_a_label_file_of_the_right_size_is_mended_by_a_recheck(
    copy, tiny, finished, capsys, damage
):
    damage(RunDirectory(copy).label_file(2))
    assert run_pipeline(tiny.manifest, copy, tiny_config(), progress=False).nothing_to_do
    assert main(["verify", str(copy)]) == 1
    assert "`dto run --recheck` does the shard again" in capsys.readouterr().out
    summary = run_pipeline(tiny.manifest, copy, tiny_config(), progress=False, recheck=True)

    assert (summary.exit_code, summary.done_now) == (0, 1)
    assert label_bytes(copy) == label_bytes(finished)
    assert verify_run(copy).exit_code == 0
    assert run_pipeline(tiny.manifest, copy, tiny_config(), progress=False, recheck=True).nothing_to_do
    assert list((copy / "failures").iterdir()) == []


def test_a_recheck_is_no_part_of_a_dry_run(copy, tiny, capsys):
    assert main(["run", str(tiny.manifest), "-o", str(copy), "--dry-run", "--recheck"]) == 2
    assert "dto verify lists the damage" in capsys.readouterr().err
    assert read_labels(RunDirectory(copy).label_file(0)).num_rows
