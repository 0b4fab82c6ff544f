"""Group label rows by image, and give every image its key.

Images are ordered by the first row that names them. The people of an image keep the order of their rows, which need not
be adjacent. A name that cannot be used is a problem of its image only. No image is opened.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from posixpath import splitext

import numpy as np

from dto_pipeline.data.sources.rows import LabelSource
from dto_pipeline.paths import UnsafePath, check_relative

WHOLE_NAME = 1 << 20  # as `key_parts`: all parts of a name make its key


@dataclass(frozen=True)
class ImageIndex:
    """M images and the N label rows they own."""

    image_name: list[str]  # M, as in the label file
    image_path: list[str]  # M, the key inside the subset; each once
    problem: dict[int, str]  # image -> why its name cannot be used
    rows: np.ndarray  # (N,) int64 label rows, image by image
    offsets: np.ndarray  # (M + 1,) int64: image m owns rows[offsets[m]:offsets[m + 1]]
    located: list[str] | None = None  # M, other folders or addresses in tars; None = under their names

    @property
    def image_file(self) -> list[str]:
        """M, relative to the images folder, or addresses in its tars."""
        return self.image_name if self.located is None else self.located

    @property
    def num_images(self) -> int:
        return len(self.image_name)

    def with_prefixes(self, prefixes: Mapping[str, str]) -> ImageIndex:
        """The index with other places: of each name the longest start among the keys of `prefixes` is replaced."""
        if not prefixes:
            return self
        known = {"": "", **prefixes}
        starts = [max(filter(name.startswith, known), key=len) for name in self.image_name]
        placed = [known[start] + name[len(start) :] for start, name in zip(starts, self.image_name, strict=True)]
        return dataclasses.replace(self, located=placed)

    def with_own_depth_maps(self) -> ImageIndex:
        """The index, where images are a problem whose names differ in the ending only: one depth map is named for both.

        Whose map it is cannot be told, so none of them may use it.
        """
        stems = [splitext(name)[0] for name in self.image_name]
        counts = Counter(stems)
        shared = {
            image: f"the depth map of {self.image_name[image]!r} would be another image's too, whose name differs in "
            "the ending only; rename one of them"
            for image, stem in enumerate(stems)
            if counts[stem] > 1
        }
        return dataclasses.replace(self, problem={**shared, **self.problem})


def index_images(source: LabelSource, key_parts: int) -> ImageIndex:
    """Group the rows of a label file by image; `key_parts`: how many last parts of the image's name make its key."""
    image_of: dict[str, int] = {}
    spelled: dict[str, int] = {}  # as written in the label file
    problem: dict[int, str] = {}
    starts, names = _name_runs(source)
    for name in names:
        if name not in spelled:
            try:
                spelled[name] = image_of.setdefault(check_relative(name), len(image_of))
            except UnsafePath as error:
                tidy = name.encode("utf-8", "backslashreplace").decode()  # one that can be stored
                spelled[name] = image_of.setdefault(tidy, len(image_of))
                problem[spelled[name]] = str(error)
    ids = np.repeat(np.array([spelled[name] for name in names], np.int64), np.diff(starts, append=source.num_rows))
    files = list(image_of)
    counts = np.bincount(ids, minlength=len(files))
    return ImageIndex(
        image_name=files,
        image_path=_keys(files, key_parts, problem),
        problem=problem,
        rows=np.argsort(ids, kind="stable"),
        offsets=np.concatenate(([0], np.cumsum(counts))),
    )


def _name_runs(source: LabelSource) -> tuple[np.ndarray, list[str]]:
    """First row and name of each run of neighbouring rows with one name."""
    names = source.image_names
    starts = np.flatnonzero(np.concatenate((np.ones(min(names.size, 1), bool), names[1:] != names[:-1])))
    return starts, names[starts].tolist()


def _keys(files: list[str], key_parts: int, problem: dict[int, str]) -> list[str]:
    """The last parts of each name. Where two images have the same, the later is a problem and its key gets a number."""
    owner: dict[str, int] = {}
    keys = []
    for image, file in enumerate(files):
        key = "/".join(file.split("/")[-key_parts:])
        if key in owner:
            other = files[owner[key]]
            problem.setdefault(image, f"its key {key!r} is that of {other!r} too; raise key_parts in the dataset YAML")
            key = f"{key}#{image}"
        owner[key] = image
        keys.append(key)
    return keys
