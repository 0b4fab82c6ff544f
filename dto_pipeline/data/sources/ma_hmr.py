"""Released DTO-Humans, in Metric-Aware HMR's layout, as the start of a manifest; `sources.annots` says what is read.

An image's name is its key in the file (`a/b/c.jpg` below `insta-train/` for INSTA, the base name for the others), so
`images` is the folder these keys are relative to, or `image_prefixes` leads there. Images that list nobody have no row;
they, and people that are not as documented, are told in the findings. No masks, ages or boxes come with it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np

from dto_pipeline.data.sources.annots import Annots, open_annots
from dto_pipeline.data.sources.rows import LabelRows


class MaHmrLabels:
    """An open file: its people one after the other, mapped. Made by `open_ma_hmr`."""

    def __init__(self, annots: Annots) -> None:
        self.files = [annots.path]
        self.num_rows = int(annots.starts[-1])
        self.findings = annots.findings
        self._annots, self._owner = annots, annots.owner

    def image_names(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) str: image keys."""
        return self._annots.names[self._owner[start:stop]].astype(str)

    def rows(self, index: np.ndarray) -> LabelRows:
        """The people named by `index` (n,) int, in this order."""
        return LabelRows(
            pose=np.array(self._annots.pose[index]),
            betas=np.array(self._annots.betas[index]),
            transl=np.array(self._annots.transl[index]),
            bbox_xyxy=np.full((index.size, 4), np.nan, np.float32),
            intrinsics=self._annots.intrinsics(index),
        )

    def __enter__(self) -> MaHmrLabels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None  # the maps go with the last reference to them


def open_ma_hmr(path: Path) -> MaHmrLabels:
    """Open a ``*_CHMR_SMPL_OPT.npz``. Raises: LabelFileError, see `data.sources.annots.open_annots`."""
    return MaHmrLabels(open_annots(path))
