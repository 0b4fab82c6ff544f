"""The released label file a run was made from, for what exports carry through: joined by each person's `source_row`.

Knows CameraHMR's layout (its names end in `data.sources.camerahmr` and here) and what a manifest says of its label
file: name and sha256. A file of other bytes is never taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.exports.inputs import ExportError, RunLabels
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.npz import MappedNpz, NpzError
from dto_pipeline.data.sources.rows import decode_names
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.reading import parse_json

NUM_KEYPOINTS = 44  # of the released files: OpenPose's 25 and 19 more
CARRIED = ("imgname", "center", "scale", "gtkps")


class Release:
    """An open label file of CameraHMR: mapped arrays, taken by row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._npz = MappedNpz(path)
            self._arrays = {key: self._npz.array(key) for key in CARRIED if key in self._npz.keys}
        except NpzError as error:
            raise ExportError(str(error)) from error

    def holds(self, key: str) -> bool:
        """Whether the file has an array; all have `imgname`, some lack the others."""
        return key in self._arrays

    def tail(self, key: str) -> tuple[int, ...]:
        """Shape of one person's entry."""
        return self._arrays[key].shape[1:]

    def rows(self, key: str, index: np.ndarray) -> np.ndarray:
        """(n, ...) the entries of some rows."""
        return np.asarray(self._arrays[key][index])

    def names(self, index: np.ndarray) -> np.ndarray:
        """(n,) str `imgname` of some rows, as published."""
        return decode_names(self.rows("imgname", index))

    def close(self) -> None:
        self._npz.close()


def open_release(run: RunLabels, manifest: Manifest, named: Sequence[Location]) -> Release | None:
    """The label file of a run; None where it was no file of CameraHMR's.

    Args:
        named: places to look at before those that the manifest tells.

    Raises:
        ExportError: it is not there, with the places tried.
    """
    if manifest.dataset.get("source") != "camerahmr":
        return None
    entry = _label_file(manifest)
    tried = []
    for place in dict.fromkeys(
        [*(p for p in map(as_location, named) if isinstance(p, Path)), *_places(manifest, entry)]
    ):
        if not place.is_file():
            tried.append(f"{place}: no such file")
        elif place.stat().st_size != entry["bytes"] or sha256_file(place) != entry["sha256"]:
            tried.append(f"{place}: another file (its sha256 is not {entry['sha256'][:16]})")
        else:
            return Release(place)
    raise ExportError(
        f"run {run.name}: its label file {entry['file']}, of which {', '.join(CARRIED)} are carried through, was not "
        f"found ({'; '.join(tried[:3]) or 'nothing tells where it is'}); name it with --labels"
    )


def _label_file(manifest: Manifest) -> dict[str, Any]:
    """What the footer says of the first label file: file, bytes, sha256. Raises: ExportError."""
    try:
        entry = parse_json(manifest.metadata["label_files"])[0]
        return {key: entry[key] for key in ("file", "bytes", "sha256")}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ExportError(f"{manifest.path}: footer garbles its label files ({error}); build it again") from error


def _places(manifest: Manifest, entry: dict[str, str]) -> Iterator[Path]:
    """Where the label file may be: below the data root, which the images folder tells, or above the manifest."""
    images, root = str(manifest.dataset.get("images", "")), manifest.images_root
    names = list(dict.fromkeys([entry["file"], str(manifest.dataset.get("labels", ""))]))
    inside = isinstance(root, Path) and images and root.parts[-len(Path(images).parts) :] == Path(images).parts
    if isinstance(root, Path) and inside:
        yield from (Path(*root.parts[: -len(Path(images).parts)]) / name for name in names if name)
    if isinstance(manifest.path, Path):
        yield from (folder / name for folder in manifest.path.absolute().parents for name in names if name)
