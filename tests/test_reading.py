"""Only regular files are opened, nothing is read without a bound, and no depth of nesting ends a parser."""

from __future__ import annotations

import os
import socket

import pytest

from dto_pipeline.reading import IrregularFile, open_regular, parse_json, parse_yaml, read_regular, read_start


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
            ("pipe", "a named pipe"),
            ("link", "a named pipe"),
            ("socket", "a socket"),
            ("/dev/zero", "a character device"),
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
    ],
)
def test_yaml_that_is_damaged_in_any_way_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"\w"):
        parse_yaml(data)
