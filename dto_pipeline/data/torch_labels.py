"""Labels as a training set: one item per image, people as tensors, photographs read when asked for.

Knows label columns and image stores; no run. Labels lie in a few flat arrays that forked workers share, so memory is
about 0.4 kB a person once, not once per worker. Metres, pixels, radians.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import EXPECTED_ERROR, NO_LIMITS, Z_SIGMA, LabelColumns, Limits
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.status import PLACED, UNUSED

SELECTIONS = ("accepted", "optimized", "all")
LABEL_IMAGES = (
    *("image_id", "image_path", "width", "height", "fx", "fy", "cx", "cy", "is_optimized", "is_accepted"),
    EXPECTED_ERROR,
)
LABEL_PEOPLE = ("pose", "betas", "transl", "height_m", "age_years", "male_prob", "status", Z_SIGMA)


class LabelDataset(Dataset[dict[str, Any]]):
    """Map-style dataset of images; see `__getitem__` for an item. Crowds differ in size: use ``collate_fn=list``."""

    def __init__(
        self,
        columns: LabelColumns,
        select: str = "accepted",
        images: ImageStore | None = None,
        names: Mapping[str, str] | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Choose images.

        Args:
            columns: `LABEL_IMAGES` and `LABEL_PEOPLE` of some label files.
            select: "accepted", "optimized" or "all" images; images without people are always left out.
            images: where photographs are read from; None = items hold no photograph.
            names: image key -> name of its file in `images`; None = its ``image_path``.
            limits: how certain images must be, and people to be ``usable``; `left_out` counts the others by reason.

        Raises:
            LabelsError: an unknown `select`, or a limit on errors that no label tells.
        """
        if select not in SELECTIONS:
            raise LabelsError(f"select is {select!r}; choose from {SELECTIONS}")
        kept = np.diff(columns.starts) > 0
        if select != "all":
            kept &= columns.images[f"is_{select}"]
        columns = columns.take(np.flatnonzero(kept))
        self.left_out = Counter[str]()
        if limits.max_error is not None and columns.num_images and np.isnan(columns.images[EXPECTED_ERROR]).all():
            raise LabelsError(
                f"max_error is {limits.max_error:g} m, but none of these labels tells an expected error (solver.mode "
                "paper, or a version before 0.4); leave it out, or make the labels with solver.mode=joint"
            )
        certain = limits.images(columns.images[EXPECTED_ERROR])
        limits.count(columns.images[EXPECTED_ERROR], columns.people[Z_SIGMA][certain[columns.owner]], self.left_out)
        columns = columns.take(np.flatnonzero(certain))
        self.image_ids: Sequence[str] = columns.images["image_id"].tolist()
        paths = columns.images["image_path"].tolist()
        self._files = paths if names is None else [names[image] for image in self.image_ids]
        self._images = images
        self._intrinsics = columns.intrinsics.astype(np.float32)
        self._size = np.stack([columns.images["height"], columns.images["width"]], axis=-1).astype(np.int64)
        self._starts = columns.starts
        people = columns.people
        floats = ("pose", "betas", "transl", "height_m", "age_years", "male_prob")
        self._people: dict[str, np.ndarray] = {name: people[name].astype(np.float32) for name in floats}
        finite = [np.isfinite(people[name]).all(axis=1) for name in ("pose", "betas", "transl")]
        self._people["usable"] = np.all(finite, axis=0) & ~np.isin(people["status"], UNUSED)
        self._people["usable"] &= limits.people(people[Z_SIGMA])
        self._people["moved"] = np.isin(people["status"], PLACED)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image and its P people.

        Returns:
            image_id str; image_size (2,) int64 H, W [px]; intrinsics (3, 3) float32 [px]; pose (P, 72) [rad],
            betas (P, 11), transl (P, 3) [m], height_m (P,) [m], age_years (P,), male_prob (P,) float32, NaN = unknown;
            usable (P,) bool: a label that can be trained on; moved (P,) bool: placed by the pipeline; and, where the
            dataset has photographs, image (H, W, 3) uint8 RGB.

        Raises:
            ImageMissing, ImageCorrupt: the photograph cannot be read.
        """
        part = slice(int(self._starts[index]), int(self._starts[index + 1])) if index >= 0 else None
        if part is None:
            return self[len(self) + index]
        item: dict[str, Any] = {name: torch.from_numpy(values[part].copy()) for name, values in self._people.items()}
        item["image_id"] = self.image_ids[index]
        item["image_size"] = torch.from_numpy(self._size[index].copy())
        item["intrinsics"] = torch.from_numpy(self._intrinsics[index].copy())
        if self._images is not None:
            item["image"] = torch.from_numpy(self._images.read(self._files[index]).rgb)
        return item
