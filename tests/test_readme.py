"""README and docs are kept true where a test can tell: columns, verbs, files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dto_pipeline.cli import build_parser
from dto_pipeline.collate import collate_scenes, split_batch
from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.models.body import BodyModel
from dto_pipeline.optimizer import SceneOptimizer
from dto_pipeline.schema import IMAGE_COLUMNS, PERSON_COLUMNS
from tests.crowds import Stander, make_scene

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def test_every_output_column_is_documented_as_the_column_table_says() -> None:
    for column in (*IMAGE_COLUMNS, *PERSON_COLUMNS):
        assert f"| {' | '.join(column.row())} |" in PAGES[ROOT / "docs" / "labels.md"], column.row()


def test_every_command_in_the_pages_is_a_verb() -> None:
    verbs = set(re.findall(r"(?:^|`)dto ([a-z]\w*)[ `]", "\n".join(PAGES.values()), re.M))
    for verb in sorted(verbs):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([verb, "--help"])
        assert stop.value.code == 0, verb


def test_every_file_the_pages_name_exists() -> None:
    for page, text in PAGES.items():
        for name in re.findall(r"`((?:jobs|tests|manifests|dto_pipeline|docs)/[\w./-]+)`", text):
            assert (ROOT / name).exists(), (page.name, name)


def test_the_readme_can_be_read_in_one_go() -> None:
    assert README.count("\n") < 250


def test_nothing_names_a_path_of_one_machine() -> None:
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("jobs/*"),
        *ROOT.glob("manifests/*"),
        *ROOT.glob("dto_pipeline/**/*.py"),
    ]:
        if path.is_file():
            assert not re.search(r"(?<![\w.])/(work|home|root)/", path.read_text()), path


def test_no_table_is_still_to_be_filled_in() -> None:
    assert not re.search(r"@[A-Z_]+@|TODO|TBD", README)


def test_the_snippet_that_reads_a_shard_runs(body: BodyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(body, [Stander(-0.5, 3.0), Stander(0.5, 3.5)])
    placed = split_batch([scene], SceneOptimizer(body, PipelineConfig())(collate_scenes([scene])), PipelineConfig())
    monkeypatch.chdir(tmp_path)
    write_label_shard(build_label_table(placed), tmp_path / "runs/coco/labels/shard-00000.parquet", {})
    snippet = re.search(r"```python\n(.*?)```", README, re.S)
    assert snippet is not None
    names: dict[str, Any] = {}
    exec(snippet.group(1), names)
    assert names["person"]["transl_init"] == pytest.approx(scene.transl[-1].tolist())
    assert names["betas"] == pytest.approx(scene.betas[-1].tolist())


def test_the_architecture_page_names_what_is_there() -> None:
    text, package = PAGES[ROOT / "docs" / "architecture.md"], ROOT / "dto_pipeline"
    for name in re.findall(r"`([\w./-]+\.py)`", text):
        assert (ROOT / name).is_file() or (package / name).is_file(), name
    path = re.findall(r"^\| `([\w/]+\.py)` \|", text, re.M)
    told = re.search(r"^Ten files below `dto_pipeline/`, ([\d,]+) lines", text, re.M)
    assert told is not None
    assert len(path) == 10
    lines = sum((package / name).read_text().count("\n") for name in path)
    assert lines == pytest.approx(int(told.group(1).replace(",", "")), rel=0.05)


def test_the_architecture_page_names_identifiers_of_the_package() -> None:
    table = PAGES[ROOT / "docs" / "architecture.md"].partition("## Where to add")[2].partition("## Words")[0]
    source = "\n".join(path.read_text() for path in (ROOT / "dto_pipeline").rglob("*.py"))
    for name in re.findall(r"`(_?[A-Za-z]\w*)`", table):
        assert name == "NAME_dn" or re.search(rf"(?<!\w){name}(?!\w)", source), name
