"""Names are a stranger's: none of their control characters and direction marks reaches a terminal or a page raw."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.cli import main
from dto_pipeline.data.dataset import DatasetError
from dto_pipeline.paths import SUBSET_NAME, UnsafePath, check_relative, name_subset
from dto_pipeline.status import ImageStatus
from dto_pipeline.terminal import configure_logs, printable, printable_stdout
from dto_pipeline.view.report import render_page
from tests.data.small_set import all_rows, build_small, label_arrays, small_dataset, write_image, write_labels_file

MARKS = "\x00\x07\x1b\x7f\x80\x9b\x9f\u061c\u200e\u200f\u2028\u202a\u202e\u2066\u2069\ufeff\udcff"
NAME = "a\x9b31m\u202egpj.exe"


def raw(text: str) -> set[str]:
    return set(text) & set(MARKS)


@given(st.text())
def test_printable_text_has_no_mark_and_changes_nothing_else(text: str) -> None:
    shown = printable(text)
    assert not raw(shown)
    assert printable(shown) == shown
    assert text != shown or not raw(text)
    if text.isprintable():
        assert shown == text


def test_marks_are_written_out() -> None:
    assert printable("a\x9b31m \u202egpj\n\t\u00e9\u05d0") == "a\\x9b31m \\u202egpj\n\t\u00e9\u05d0"


@pytest.mark.parametrize("mark", MARKS)
def test_a_name_with_a_mark_is_refused_as_a_file(mark: str) -> None:
    with pytest.raises(UnsafePath) as caught:
        check_relative(f"a/{mark}b.jpg")
    assert not raw(str(caught.value))


def test_a_build_refuses_such_images_by_row_and_shows_them_written_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path, "good.jpg")
    names = ["good.jpg", f"{NAME}.jpg", "b\u2066.jpg"]
    rows = all_rows(build_small(tmp_path, names, depth="")[0])
    found = {row["image_path"]: (row["problem_status"], row["problem"]) for row in rows}
    assert found["good.jpg"][0] is None
    assert [found[name][0] for name in names[1:]] == [ImageStatus.LABEL_INVALID] * 2
    assert not any(raw(found[name][1]) for name in names[1:])
    capsys.readouterr()
    main(["manifest", "check", str(tmp_path / "small.parquet")])
    told = capsys.readouterr()
    assert not raw(told.out + told.err)


def test_what_a_verb_prints_and_complains_of_is_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / NAME)]) == 2
    with pytest.raises(SystemExit):
        main([NAME])
    told = capsys.readouterr()
    assert not raw(told.out + told.err)
    assert told.err.count("\\x9b31m\\u202egpj") == 2
    with printable_stdout(sys.stdout):
        print(NAME)
        print("\rhalf", end="")
    assert capsys.readouterr().out == f"{printable(NAME)}\n\rhalf"


def test_log_lines_for_people_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger().handlers[:]
    try:
        configure_logs()
        logging.getLogger("x").warning("image %s is gone", NAME)
    finally:
        logging.basicConfig(handlers=before, force=True)
    assert printable(NAME) in capsys.readouterr().err


def test_a_page_holds_no_mark() -> None:
    parts = {"title": NAME, "tiles": [(NAME, NAME, NAME)], "status": NAME, "certain": [], "failed": 1}
    chart = {"title": NAME, "note": NAME, "source": "data:,"}
    more = {"charts": [chart], "scenes": [(NAME, [(NAME, "data:,")])], "settings": [(NAME, NAME)]}
    page = render_page(**parts, **more, failures=[(NAME, NAME, NAME)])
    assert not raw(page)
    assert "\\u202e" in page


@pytest.mark.parametrize("name", ["<b>x</b>", "a&b", "a b", "", ".x", "a/b", 'a"b', "\u202ea", "../x", "a\nb"])
def test_a_subset_that_no_export_could_write_is_refused_before_anything_is_built(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match="expected one word of letters"):
        small_dataset(tmp_path, name=name)
    write_labels_file(tmp_path, label_arrays(["a.jpg"]))
    tree = {"name": name, "source": "camerahmr", "labels": "labels/small-release.npz", "images": "images"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree))
    out = tmp_path / "m.parquet"
    assert main(["manifest", "build", str(tmp_path / "x.yaml"), "--data-root", str(tmp_path), "-o", str(out)]) == 2
    assert "expected one word of letters" in capsys.readouterr().err
    assert not out.exists()


@given(st.text())
def test_every_folder_gives_a_subset_its_name(folder: str) -> None:
    assert SUBSET_NAME.fullmatch(name_subset(folder))
