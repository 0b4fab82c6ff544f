"""Two writers of one shard, and what a label file's footer tells."""

import dataclasses
import json

import pytest

from dto_pipeline.data.labels import read_label_metadata, write_label_shard
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, read_identity
from dto_pipeline.run.publish import PublishError, ShardFiles, find_orphan, find_shard_files, publish_labels, shard_key
from tests.run.chaos import ChaosRunner, tiny_config


@pytest.fixture
def finished(tiny, tmp_path):
    """Folder of a finished run."""
    run_pipeline(tiny.manifest, tmp_path / "run", tiny_config(), progress=False)
    return RunDirectory(tmp_path / "run")


def _orphan(directory):
    """Rows and footer of shard 0, which the caller may publish again."""
    ids = [f"tiny/{number:06d}.jpg" for number in range(3)]
    table = find_orphan(directory, read_identity(directory), 0, 0, ids)
    return table, read_label_metadata(directory.label_file(0))


def test_publishing_what_is_already_there_leaves_it_alone(finished):
    table, _ = _orphan(finished)
    before = finished.label_file(0).stat()

    publish_labels(finished, read_identity(finished), 0, 0, table, {})

    assert finished.label_file(0).stat() == before


def test_a_file_of_other_settings_that_appears_meanwhile_is_not_taken_for_ours(finished):
    table, footer = _orphan(finished)
    finished.label_file(0).unlink()
    write_label_shard(table, finished.label_file(0), {**footer, "shard_key": "another"})

    with pytest.raises(PublishError, match="next attempt"):
        publish_labels(finished, read_identity(finished), 0, 0, table, {})


@pytest.mark.parametrize("other", ["settings", "rows"])
def test_a_label_file_of_other_settings_or_rows_is_not_adopted(finished, other):
    identity, ids = read_identity(finished), [f"tiny/{number:06d}.jpg" for number in range(3)]
    if other == "settings":
        identity = dataclasses.replace(identity, config_hash="another")
    else:
        ids = ids[::-1]

    assert find_orphan(finished, identity, 0, 0, ids) is None


def test_a_zombie_that_comes_late_finds_the_receipt_and_does_nothing(finished, tiny):
    before = {path: path.stat().st_mtime_ns for path in finished.root.rglob("shard-*")}
    zombie = ChaosRunner(tiny_config(), tiny.manifest, finished.root)

    assert zombie.run(0, attempt=7).attempt == 1
    assert {path: path.stat().st_mtime_ns for path in finished.root.rglob("shard-*")} == before


def test_a_receipt_without_its_label_file_is_not_valid(finished):
    finished.label_file(0).unlink()

    assert find_shard_files(finished, read_identity(finished), 0) == ShardFiles(None, 1, None)


def test_the_shard_key_depends_on_rows_and_their_order(finished):
    identity = read_identity(finished)

    assert len({shard_key(identity, ids) for ids in (["a", "b"], ["b", "a"], ["a"])}) == 3


def test_the_footer_tells_config_inputs_and_versions_but_no_path_of_this_machine(finished, tiny):
    footer = read_label_metadata(finished.label_file(0))

    assert json.loads(footer["config"])["solver"]["max_height"] == 2.1
    assert json.loads(footer["label_files"])[0]["file"] == "labels/tiny-release.npz"
    assert {"config_hash", "manifest_fingerprint", "body_sha256", "shard", "versions", "licence"} <= footer.keys()
    assert str(tiny.dataset.root) not in json.dumps(footer)
