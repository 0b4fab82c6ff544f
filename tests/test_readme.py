"""The README is kept true where a test can tell: columns, verbs, files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dto_pipeline.cli import build_parser
from dto_pipeline.schema import LABEL_PERSON, LABELS_SCHEMA

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_output_column_is_documented() -> None:
    names = {*LABELS_SCHEMA.names, *(LABEL_PERSON.field(i).name for i in range(LABEL_PERSON.num_fields))}
    documented = set(re.findall(r"`(\w+)`", README))
    assert names <= documented, sorted(names - documented)


def test_every_command_in_the_readme_is_a_verb() -> None:
    verbs = set(re.findall(r"`?\bdto (\w+)[ `]", README)) - {"VERB"}
    for verb in sorted(verbs):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([verb, "--help"])
        assert stop.value.code == 0, verb


def test_every_file_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:jobs|tests|manifests|dto_pipeline|docs)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


def test_nothing_names_a_path_of_one_machine() -> None:
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("jobs/*"),
        *ROOT.glob("manifests/*"),
        *ROOT.glob("dto_pipeline/**/*.py"),
    ]:
        if path.is_file():
            assert not re.search(r"(?<![\w.])/(work|home|root)/", path.read_text()), path
