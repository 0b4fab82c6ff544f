"""The objects behind ``memory://``, which tests read and write without the project's code."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from dto_pipeline.data.object_store import open_remote
from dto_pipeline.data.storage import list_names


def clear_memory() -> None:
    """Take everything away."""
    store, there = open_remote("memory://"), list[str]()
    with suppress(FileNotFoundError):  # nothing lies there
        there = list(store.walk())
    for name in there:
        store.remove(name)
    assert not store.entries("")


def put(place: str, data: bytes) -> None:
    """Write `data` at ``memory://place``."""
    open_remote("memory://").replace(place, data)


def upload(folder: Path, place: str) -> None:
    """Put every file below a folder of this machine below ``memory://place``."""
    for name in list_names(folder, ("",)):
        put(f"{place}/{name}", (folder / name).read_bytes())
