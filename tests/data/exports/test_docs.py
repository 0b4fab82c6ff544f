"""docs/exports.md is true: its snippets run on real exports, its table lists the formats there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dto_pipeline.commands import export as command
from dto_pipeline.data.exports.formats import FORMATS, export_labels
from dto_pipeline.data.exports.job import PERSON_CHOICES

TEXT = (Path(__file__).parents[3] / "docs" / "exports.md").read_text()
SNIPPETS = re.findall(r"```python\n# format: ([\w-]+)\n(.*?)```", TEXT, re.DOTALL)
READERS = {"webdataset", "datasets", "mlcroissant"}


@pytest.mark.parametrize(("name", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_every_snippet_runs(name, code, runs, tmp_path, monkeypatch) -> None:
    for reader in READERS & set(re.findall(r"(?:import|from) (\w+)", code)):
        pytest.importorskip(reader, reason="pip install 'dto-pipeline[exports]'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    export_labels([runs["mpii"]], name, tmp_path / "out", progress=False)
    exec(compile(code.replace("FOLDER", str(tmp_path / "out")), "docs/exports.md", "exec"), {})


def test_every_format_is_documented_and_on_the_command_line() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", TEXT, re.MULTILINE)) == set(FORMATS) == set(command._FORMATS)
    assert {name for name, _ in SNIPPETS} == set(FORMATS)
    assert set(command._PERSONS) == set(PERSON_CHOICES)
