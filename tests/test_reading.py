"""Only regular files are opened, nothing is read without a bound, and no depth of nesting ends a parser."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from dto_pipeline.cli import main
from dto_pipeline.data.labels import read_labels
from dto_pipeline.reading import IrregularFile, open_regular, parse_json, parse_yaml, read_regular, read_start
from tests.limited import run_limited


def test_a_link_to_a_file_is_the_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert read_regular(tmp_path / "link") == b"abc"
    assert read_start(tmp_path / "link", 2) == b"ab"


def test_pipes_sockets_devices_and_folders_are_refused_and_nothing_hangs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    os.mkfifo("pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for place, what in (
            ("pipe", "a pipe, socket or device"),
            ("link", "a pipe, socket or device"),
            ("socket", "a pipe, socket or device"),
            ("/dev/zero", "a pipe, socket or device"),
            (".", "a folder"),
        ):
            with pytest.raises(IrregularFile, match=what):
                open_regular(place)
    with pytest.raises(FileNotFoundError):
        open_regular("none")


def test_a_file_larger_than_any_of_its_kind_is_not_read(tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(OSError, match="more than 10 bytes"):
        read_regular(tmp_path / "x", 10)
    assert read_start(tmp_path / "x", 3) == bytes(3)


def test_a_file_whose_mount_reports_size_0_is_read_up_to_the_bound():
    assert os.stat("/proc/self/status").st_size == 0
    assert read_regular("/proc/self/status").startswith(b"Name:")
    assert read_start("/proc/self/status", 5) == b"Name:"


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe{", b'{"a": 1', b"1" * 10_000, b'{"a": "\xff"}'])
def test_json_that_is_damaged_in_any_way_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(data)


@pytest.mark.parametrize(
    "data",
    [
        "[" * 5000,
        "{a: " * 5000,
        b"\xff\xfe\x00",
        b"PAR1\x15\x04\x15\x10\x80",
        "a: [1",
        "2020-13-45",
        "x: !!python/object:os.system {}",
        "? [1]\n: 2",
        "1" * 10_000,
        "\x00",
        "solver: {mode: joint}\nsolver: {max_height: 2.2}",
        "run: {workers: 1, workers: 2}",
    ],
)
def test_yaml_that_is_damaged_in_any_way_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(data)


def test_a_key_of_yaml_that_overrides_a_merged_one_is_no_second_one():
    # names of more than one letter, as options have: PyYAML 6.0.4 takes the first of equal letters in the second case
    assert parse_yaml("a: &a {mode: 1, y: 1}\nb: {<<: *a, mode: 2}")["b"] == {"mode": 2, "y": 1}
    deep = parse_yaml("a: &a {mode: 1, y: 1}\nc: {d: &d {<<: *a, mode: 2}}\nb: {<<: *d}")  # d is merged, then made
    assert deep["b"] == deep["c"]["d"] == {"mode": 2, "y": 1}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Two synthetic images with labels and depth."""
    folder = tmp_path_factory.mktemp("crowd") / "d"
    assert main(["synth", "-o", str(folder), "--images", "2", "--quiet"]) == 0
    return folder


@pytest.mark.parametrize(
    ("limit", "size", "says"),
    [
        (resource.RLIMIT_FSIZE, 0, "set TMPDIR"),
        (resource.RLIMIT_FSIZE, 20_000, "ulimit -f"),
        (resource.RLIMIT_AS, 1500 << 20, "ulimit -v"),
    ],
)
def test_a_limit_of_the_system_is_one_sentence_and_exit_code_2(crowd, tmp_path, limit, size, says):
    build = ("manifest", "build", crowd / "dataset.yaml", "--data-root", crowd, "-o", tmp_path / "m.parquet", "--quiet")
    found = subprocess.run(
        [sys.executable, "-m", "dto_pipeline.cli", *map(str, build)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(limit, (size, size)),
        check=False,
    )

    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert found.stderr.startswith("dto manifest: ")
    assert says in found.stderr


@pytest.fixture
def bell():
    """Whatever waits for a pipe is woken after a minute."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put_pipe(place):
    place.unlink()
    os.mkfifo(place)


def put_device(place):
    place.unlink()
    place.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [put_pipe, put_device])
@pytest.mark.usefixtures("bell")
def test_pipes_and_devices_in_the_place_of_inputs_are_named_and_nothing_hangs(crowd, tmp_path, capsys, put):
    data = shutil.copytree(crowd, tmp_path / "d")
    image, *_ = sorted((data / "images").rglob("*.jpg"))
    depth, *_ = sorted((data / "depth").rglob("*.npy"))
    manifest, config = data / "m.parquet", data / "config.yaml"
    build = ["manifest", "build", str(data / "dataset.yaml"), "--data-root", str(data), "-o", str(manifest), "--quiet"]
    build += ["--max-failed-images", "1"]
    run = ["run", str(manifest), "-o", str(data / "run"), "--workers", "0", "--quiet", "--set", "body.model_path=demo"]
    put(depth)
    assert main(build) == 0
    put(image)
    main(run)  # half of the images fail: how it ends is not asked here
    words = {row["message"] for part in (data / "run/labels").iterdir() for row in read_labels(part).to_pylist()}
    assert any("expected a regular file" in word for word in words if word)

    config.write_text("")
    capsys.readouterr()
    for place, command in (
        (config, [*run, "--config", str(config)]),
        (manifest, run),
        (data / "labels/release.npz", build),
        (data / "dataset.yaml", build),
    ):
        put(place)
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert "expected a regular file" in said
        assert place.name in said


def test_an_empty_file_and_one_of_unknown_size_take_the_memory_of_what_they_hold(tmp_path):
    (tmp_path / "empty").touch()
    told = run_limited(
        "import sys\nfrom dto_pipeline.reading import read_start\nbefore = peak()\n"
        "found = [len(read_start(path, 1 << 33)) for path in sys.argv[1:]]\n"
        "tell(found=found, memory=peak() - before)",
        tmp_path / "empty",
        "/proc/self/status",
    )
    assert told["found"][0] == 0
    assert told["found"][1] > 100
    assert told["memory"] < 50
