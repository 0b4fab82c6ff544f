"""The command line: what it prints, what it returns, and that errors for people come without a traceback."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dto_pipeline.cli import build_parser, main
from dto_pipeline.models.networks import LICENCES


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = ("demo", "manifest build", "run", "status", "verify", "diff", "view", "report", "golden", "bench")
    for verb in (*verbs, "body import"):
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([*verb.split(), "--help"])
        assert stop.value.code == 0
        assert "usage: dto" in capsys.readouterr().out


def _number_types(parser: argparse.ArgumentParser) -> Iterator[tuple[str, Callable[[str], object]]]:
    """Name and type of every option of a parser and the verbs below it that takes a number."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _number_types(below)
        elif callable(action.type) and action.type is not Path:
            yield action.dest, action.type


def test_every_option_that_takes_a_number_refuses_what_means_nothing() -> None:
    options = dict(_number_types(build_parser()))
    assert {"min_persons", "max_height_dev", "min_score", "workers", "seed", "watch"} <= options.keys()
    for read in options.values():
        for text in ("-3", "nan", "inf", "1e999"):
            with pytest.raises((ValueError, argparse.ArgumentTypeError)):
                read(text)


def test_the_help_of_a_run_ends_in_paragraphs_whose_names_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--help"])
    shown = capsys.readouterr().out
    epilog = shown[shown.index("A depth network instead") :]
    assert [part.splitlines()[0].partition(" (")[0] for part in epilog.split("\n\n")] == [
        "A depth network instead of depth files:",
        "Licences of known networks",
        "Exit codes:",
    ]
    assert {name for name in LICENCES if name not in epilog} == set()
    assert "\n  1    shards were given up" in epilog


@pytest.mark.parametrize("where", ["a file", "stdout"])
def test_golden_returns_zero_when_all_agree_and_prints_a_table_or_json_alone(
    golden_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    shutil.copytree(golden_folder / "solver", tmp_path / "recorded" / "solver")
    file = [str(tmp_path / "report.json")] if where == "a file" else []
    assert main(["golden", str(tmp_path / "recorded"), "--json", *file]) == 0
    said = capsys.readouterr().out
    if file:
        assert "solver" in said
        said = Path(*file).read_text()
    told = json.loads(said)
    assert (told["passed"], told["families"]["solver"]["cases"]) == (True, 62)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["golden", "nowhere"], "holds no recorded cases"),
        (["run", "nowhere.parquet", "-o", "run"], "nowhere.parquet"),
        (["run", "nowhere.parquet", "-o", "run", "--set", "solver.mode=magic"], "solver.mode is 'magic'"),
        (["run", "nowhere.parquet", "-o", "run", "--set", "solver.speed=9"], "unknown key solver.speed"),
        (["run", "nowhere.parquet", "-o", "run", "--set", "depth.source=model"], "depth.model is empty"),
        (["bench", "--depth", "--images", "1"], "depth.model is empty"),
        (["run", "manifests/coco.yaml", "-o", "run"], "dto manifest build manifests/coco.yaml"),
        (["status", "nowhere"], "nowhere"),
        (["verify", "nowhere"], "holds no run.json"),
        (["diff", "nowhere", "nowhere"], "nowhere does not exist"),
        (["view", "nowhere", "-o", "out"], "holds no run.json"),
        (["report", "nowhere", "-o", "out"], "holds no run.json"),
        (["manifest", "build", "nowhere.yaml", "--data-root", ".", "-o", "m.parquet"], "nowhere.yaml"),
        (["body", "import", "nowhere.pkl", "-o", "bodies"], "nowhere.pkl"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_code_two(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


def test_the_shell_completes_verbs(tmp_path: Path) -> None:
    """As bash does it: argcomplete writes what fits to file descriptor 8, here a file."""
    answers = tmp_path / "answers"
    line = "dto stat"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = [sys.executable, "-c", "import sys; from dto_pipeline.cli import main; sys.argv[0] = 'dto'; main()"]
    subprocess.run(command, env=environment, check=False)
    assert answers.read_text().strip() == "status"


def test_the_log_may_be_asked_for_before_or_behind_the_verb() -> None:
    for line in (["-v", "status", "run"], ["status", "run", "-v"]):
        assert build_parser().parse_args(line).verbose
    assert not build_parser().parse_args(["status", "run"]).verbose


def fail_to_open(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("dto_pipeline.data.manifest.Manifest.open", fail)


def test_what_the_system_says_without_a_file_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_to_open(monkeypatch, errno.ENOSPC)  # as `write` says it
    assert main(["run", "m.parquet", "-o", "run"]) == 2
    assert capsys.readouterr().err.strip() == "dto run: No space left on device; make room and start again"


def test_a_removed_current_folder_is_named_and_blamed_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_to_open(monkeypatch, errno.ENOENT)  # as a socket whose other end died, or `getcwd`
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        main(["run", "m.parquet", "-o", "run"])
    tmp_path.rmdir()
    assert main(["run", "m.parquet", "-o", "run"]) == 2
    said = "the current folder was removed; change to another one and start again"
    assert capsys.readouterr().err.strip() == f"dto run: {said}"


def test_every_verb_that_is_asked_to_end_does_so_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        (tmp_path / "half").touch()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            (tmp_path / "half").unlink()

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody handles it"))
    monkeypatch.setattr("dto_pipeline.data.dataset.load_dataset", interrupted)
    try:
        assert main(["manifest", "build", "coco", "-o", str(tmp_path / "m.parquet")]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "dto manifest: interrupted; finished work is kept\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_a_library_loads_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pandas and CPython report it; the traceback ended with 1, "done with failures"."""
    causes: list[BaseException] = [KeyboardInterrupt(), ValueError()]

    def load(*_: object) -> None:
        raise SystemError("<class '__pyx_defaults'> returned a result with an exception set") from causes.pop(0)

    monkeypatch.setattr("dto_pipeline.data.manifest.Manifest.open", load)
    assert main(["run", "m.parquet", "-o", "run"]) == 130
    with pytest.raises(SystemError):
        main(["run", "m.parquet", "-o", "run"])


@pytest.mark.parametrize(
    ("shell", "environment", "said"),
    [
        ("dto synth -o rün --images 1 --quiet", {"PYTHONIOENCODING": "ascii"}, b"r\\xfcn: 1 images"),
        ("dto synth --list >&- 2>&-", {}, b""),
    ],
)
def test_streams_that_lack_letters_or_are_closed_stop_nobody(
    shell: str, environment: dict[str, str], said: bytes, tmp_path: Path
) -> None:
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", shell], cwd=tmp_path, env={**os.environ, **path, **environment}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(said)
