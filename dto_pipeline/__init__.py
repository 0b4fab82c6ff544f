"""Scene-consistent, metric 3D labels of crowds (DTO, arXiv 2511.13282).

Conventions:

* Camera frame: x right, y down, z forward, metres. Pixels: u right, v down, origin at the top left corner of
  the top left pixel. ``intrinsics`` (K in formulas) is one 3x3 matrix per image.
* SMPL's ``transl`` is added after skinning: the pelvis is not at ``transl``.
* ``disparity`` is a network's relative inverse depth (larger is nearer), ``depth`` its inverse (larger is
  farther, unit unknown), ``z`` is metres along the camera axis.
* Axes: B scenes, P people, G groups (0 near, 1 far), N fits, J joints, V vertices, H W pixels of the image,
  h w pixels of the person map.
* Three booleans, three words: ``present`` (not padding), ``usable`` (evidence good enough), ``active`` (in the
  fit now).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dto_pipeline.api import *  # noqa: F403

__version__ = "0.4.0"

_API = (
    *("optimize_scene", "read_scenes", "read_table", "torch_dataset"),
    *("PipelineConfig", "load_body", "load_config", "interval_halfwidth"),
)  # offered as dto_pipeline.NAME; loaded from `dto_pipeline.api` when first asked for


def __getattr__(name: str) -> object:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("dto_pipeline.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
