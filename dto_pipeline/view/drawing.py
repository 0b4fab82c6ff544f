"""Draw the parts of a page into matplotlib axes: meshes over a photograph, people from above, the depth map, the fit.

Units: pixels of the photograph (u right, v down), metres in the camera frame. Colours are RGB in 0 .. 1.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Circle
from PIL import Image

from dto_pipeline.models.rasterizer import find_surface, rasterize, vertex_normals
from dto_pipeline.scene import PlacedScene

INK, MUTED, RULE, PAPER, GROUND = "#21252d", "#707885", "#dadee5", "#ffffff", "#f1f3f7"
_NO_PHOTO = 0xD2  # grey level shown in place of a photograph
# neighbouring colours differ in hue and lightness, also for readers who cannot distinguish red from green
_PEOPLE = np.array(
    [
        *((230, 97, 38), (38, 118, 204), (245, 184, 26), (128, 72, 176), (22, 160, 133), (214, 59, 106)),
        *((101, 186, 232), (132, 112, 40), (94, 178, 60), (60, 76, 150), (240, 140, 158), (94, 92, 100)),
    ]
) / 255.0  # fmt: skip
_TAG = np.array([22.0, 17.0])  # width and height kept free for a person's number [px]
_DIRECTIONS, _RINGS = 16, 40  # of the places that are tried around the wanted one of a number
_LEADER_FROM = 14.0  # a number moved farther than this gets a line back to its person [px]
_CUT = (1.0, 99.0)  # percentiles of disparity shown as the darkest and the brightest colour
_FINER = 2  # meshes are drawn at this many times the size of the figure
_LIGHT = torch.nn.functional.normalize(torch.tensor((-0.35, -0.62, -0.70)), dim=0)  # towards the light, camera frame
_AMBIENT, _DIFFUSE, _OUTLINE = 0.5, 0.7, 0.45  # brightness in the shade, added by the light, and of outlines
_OPACITY = 0.82  # of the meshes
_BODY_RADIUS = 0.24  # of a person seen from above [m]
_LEAST_RADIUS = 6.0  # a disc is never smaller [px]
_LETTERS = 52  # of a line of text over a missing photograph
_UNKNOWN = (640, 480)  # width and height if no photograph and no plausible camera is known [px]
_MOST_PIXELS = 1 << 27  # of a placeholder; no larger photograph is read


def person_colours(count: int) -> np.ndarray:
    """(count, 3) float RGB, one colour per person; every twelve people they repeat in a paler tone."""
    index = np.arange(count)
    paler = np.minimum(index // len(_PEOPLE) * 0.3, 0.75)[:, None]
    return _PEOPLE[index % len(_PEOPLE)] * (1 - paler) + paler


def picture_size(size: Sequence[float] | np.ndarray, intrinsics: np.ndarray) -> tuple[int, int]:
    """Width and height of a photograph that may never have been read [px].

    Args:
        size: width and height; 0 or not finite = unknown, then the camera is taken to be centred.
        intrinsics: (3, 3) of that camera [px].
    """
    sides = np.asarray(size, np.float64)
    sides = sides if np.isfinite(sides).all() and (sides > 0).all() else 2 * intrinsics[:2, 2]
    usable = np.isfinite(sides).all() and (sides >= 16).all() and sides.prod() <= _MOST_PIXELS
    width, height = sides.round().astype(int).tolist() if usable else _UNKNOWN
    return width, height


def missing_photo(size: Sequence[float] | np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 grey picture in place of a photograph; arguments as of `picture_size`."""
    return np.full((*picture_size(size, intrinsics)[::-1], 3), _NO_PHOTO, np.uint8)


def draw_meshes(
    photo: np.ndarray,
    vertices: torch.Tensor,
    present: torch.Tensor,
    faces: torch.Tensor,
    intrinsics: torch.Tensor,
    longest_side: int,
) -> list[tuple[np.ndarray, dict[int, tuple[float, float]]]]:
    """Draw the people of a photograph over it in each of B states, shaded and semi-transparent.

    Args:
        photo: (H, W, 3) uint8 RGB.
        vertices: (B, P, V, 3) meshes [m]; present: (B, P) bool, who is drawn.
        faces: (F, 3) int64; intrinsics: (B, 3, 3) of the photograph [px].
        longest_side: the size at which the pictures will be shown [px]; they are twice as fine.

    Returns:
        For each state an (h, w, 3) uint8 picture and the highest pixel (u, v) of each visible person.
    """
    height, width = photo.shape[:2]
    scale = _FINER * longest_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    camera = intrinsics.to(torch.float64).clone()
    camera[:, 0] *= size[0] / width
    camera[:, 1] *= size[1] / height
    raster = rasterize(vertices, faces, camera, torch.tensor([size[::-1]]).expand(len(vertices), 2), present)
    ground = np.array(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS), np.float32).reshape(-1, 3)
    colours = torch.from_numpy(255 * person_colours(vertices.shape[1])).float()
    drawn = []
    for state, meshes in enumerate(vertices):
        person = raster.person[state]
        surface = find_surface(raster, state, meshes, faces, camera[state])
        normal = torch.nn.functional.normalize(surface.interpolate(vertex_normals(meshes, faces)), dim=-1)
        brightness = _AMBIENT + _DIFFUSE * (normal @ _LIGHT).clamp(min=0)
        ids = person[None, None].float()  # a border pixel has another person, or none, next to it
        border = torch.nn.functional.max_pool2d(ids, 3, 1, 1) != -torch.nn.functional.max_pool2d(-ids, 3, 1, 1)
        brightness[border.flatten()[surface.pixel]] = _OUTLINE
        shaded = (colours[surface.person] * brightness[:, None]).clamp(max=255).numpy()
        picture, pixel = ground.copy(), surface.pixel.numpy()
        picture[pixel] += _OPACITY * (shaded - picture[pixel])
        seen, first = np.unique(surface.person.numpy(), return_index=True)  # row-major: the first pixel is the highest
        tops = {
            int(one): (float(at % size[0]), float(at // size[0])) for one, at in zip(seen, pixel[first], strict=True)
        }
        drawn.append((picture.round().astype(np.uint8).reshape(size[1], size[0], 3), tops))
    return drawn


def show_picture(axes: Axes, picture: np.ndarray, tops: dict[int, tuple[float, float]], reason: str = "") -> None:
    """Show a picture of `draw_meshes` with a number over each person; `reason`: why there is no photograph."""
    axes.imshow(picture)
    axes.set_axis_off()
    if reason:
        box = {"facecolor": PAPER, "edgecolor": "none"}
        text = textwrap.fill(reason, _LETTERS)
        axes.text(0.5, 0.9, text, transform=axes.transAxes, ha="center", va="top", bbox=box, parse_math=False)
    number_people(axes, np.array([*tops.values()]).reshape(-1, 2), np.array([*tops], int), 10)


def number_people(axes: Axes, places: np.ndarray, people: np.ndarray, above: float) -> None:
    """Write people's numbers, from 1, over their places; numbers that would overlap are moved apart.

    Args:
        places: (n, 2) in the units of the axes, whose limits must not change afterwards.
        people: (n,) int; above: distance of a number from its place [px].
    """
    axes.apply_aspect()
    frame = axes.get_window_extent()
    anchors = axes.transData.transform(places) + np.array([0, above])
    centres = spread_labels(anchors - frame.min, np.array(frame.size)) + frame.min
    colours = person_colours(int(people.max(initial=-1)) + 1)
    for person, anchor, centre in zip(people.tolist(), anchors, centres, strict=True):
        colour = colours[person]
        moved = np.hypot(*(centre - anchor)) > _LEADER_FROM
        is_light = float(colour @ [0.299, 0.587, 0.114]) > 0.65
        axes.annotate(
            str(person + 1),
            anchor,
            centre,
            xycoords="figure pixels",
            textcoords="figure pixels",
            ha="center",
            va="center",
            fontsize=7.5,
            color=INK if is_light else PAPER,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": colour, "edgecolor": INK, "linewidth": 0.6},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1} if moved else None,
            annotation_clip=False,
            zorder=6,
        )


def spread_labels(anchors: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """(n, 2) centres of labels of the size `_TAG` near their anchors (n, 2) [px], inside the bounds (2,).

    They do not overlap as long as there is room within a few hundred pixels.
    """
    angle = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
    circle = np.stack([np.sin(angle), np.cos(angle)], axis=-1)  # upwards first
    rings = 0.45 * _TAG.max() * np.arange(1, _RINGS + 1)
    offsets = np.concatenate([np.zeros((1, 2)), (rings[:, None, None] * circle).reshape(-1, 2)])
    centres = np.empty((0, 2))
    for anchor in anchors:
        tried = np.clip(anchor + offsets, _TAG / 2, bounds - _TAG / 2)
        free = (np.abs(tried[:, None] - centres) >= _TAG).any(axis=-1).all(axis=-1)
        distance = np.hypot(*(tried - anchor).T)
        best = int(np.argmin(np.where(free, distance, np.inf))) if free.any() else 0
        centres = np.concatenate([centres, tried[best : best + 1]])
    return centres


def draw_birds_eye(
    axes: Axes,
    places: np.ndarray,
    intrinsics: np.ndarray,
    image_width: int,
    shown: np.ndarray,
    truth: np.ndarray | None = None,
    z_sigma: np.ndarray | None = None,
) -> None:
    """Draw people from above: x to the right, z upwards; heights above the ground are not shown.

    Args:
        places: (P, 2) x, z of each person [m]; NaN = not drawn.
        intrinsics: (3, 3) of the photograph [px]; image_width: of the photograph [px].
        shown: (n, 2) points that must be visible [m]; the same for figures that are compared.
        truth: (P, 2) true places [m], hollow circles; None = unknown.
        z_sigma: (P,) standard deviation of z [m], bars along the line of sight; None or NaN = unknown.
    """
    points = np.concatenate([shown[np.isfinite(shown).all(axis=1)], [[-1.2, 0.0], [1.2, 2.0]]])
    (left, _), (right, far) = points.min(axis=0) - 0.6, points.max(axis=0) + 0.7
    box = axes.get_window_extent().size  # one scale for both axes, the camera at the bottom
    span = box * max((right - left) / box[0], (far + 0.25) / box[1])
    axes.set_xlim((left + right - span[0]) / 2, (left + right + span[0]) / 2)
    axes.set_ylim(-0.25, span[1] - 0.25)
    axes.yaxis.set_major_formatter("{x:g} m")
    axes.set_facecolor(GROUND)  # outside the field of view it stays grey
    edges = (np.array([0.0, image_width]) - intrinsics[0, 2]) / intrinsics[0, 0] * 2 * span[1]
    axes.fill([0, *edges], [0, 2 * span[1], 2 * span[1]], facecolor=PAPER, edgecolor=MUTED, linewidth=0.7, zorder=0.4)
    axes.plot(0, 0, marker="^", color=MUTED, markersize=9)
    radius = max(_BODY_RADIUS, _LEAST_RADIUS * span[0] / box[0])
    drawn = np.isfinite(places).all(axis=1)
    for person, colour in enumerate(person_colours(len(places))):
        place = places[person]
        if truth is not None:
            axes.add_patch(Circle(truth[person], radius, fill=False, edgecolor=colour, linewidth=1.5))
            axes.plot(*np.stack([place, truth[person]]).T, color=colour, linewidth=1)
        if not drawn[person]:
            continue
        axes.add_patch(Circle(place, radius, facecolor=colour, edgecolor=PAPER, linewidth=0.5, zorder=3))
        if z_sigma is not None and np.isfinite(z_sigma[person]):
            ends = np.outer(1 + np.array([-1, 1]) * z_sigma[person] / max(place[1], 1e-3), place)
            axes.plot(*ends.T, color=INK, linewidth=1, marker="_", markersize=6, zorder=4)
    number_people(axes, places[drawn], np.flatnonzero(drawn), radius * box[0] / span[0] + 9)


def draw_depth_map(axes: Axes, placed: PlacedScene) -> None:
    """Show the scene's disparity, bright is near; without a map say why there is none."""
    axes.set_axis_off()
    disparity = placed.scene.disparity
    if disparity is None:  # maps made by a network are not kept
        origin = placed.scene.origin.get("depth", "file")
        why = (
            "no depth map" if origin.endswith("file") else f"depth came from a network ({origin}); its map is not kept"
        )
        axes.text(0.5, 0.5, textwrap.fill(why, _LETTERS), transform=axes.transAxes, ha="center", parse_math=False)
        return
    finite = disparity[np.isfinite(disparity)]
    low, high = np.percentile(finite, _CUT) if finite.size else (0.0, 1.0)
    axes.imshow(disparity, cmap="viridis", vmin=low, vmax=high)  # readable without colour vision, and in grey


def fitted_people(placed: PlacedScene) -> np.ndarray:
    """(n,) indices of the people who have a depth and a group."""
    z = placed.scene.transl[:, 2]
    return np.flatnonzero(np.isfinite(placed.depth_mean) & np.isfinite(z) & (placed.depth_group >= 0))


def draw_fit(axes: Axes, placed: PlacedScene) -> None:
    """Draw people's z against relative depth (hollow before, filled after) and the lines that place them.

    A near line that was placed by ground evidence does not go through its people.
    """
    kept = fitted_people(placed)
    depth, colours = placed.depth_mean[kept], person_colours(placed.scene.num_people)[kept]
    if not kept.size:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no person was measured", transform=axes.transAxes, ha="center", color=MUTED)
        return
    before, after = (np.stack([depth, side[kept, 2]], axis=-1) for side in (placed.scene.transl, placed.transl))
    axes.add_collection(LineCollection(np.stack([before, after], axis=1).tolist(), colors=colours, linewidths=1))
    axes.scatter(before[:, 0], before[:, 1], s=60, facecolors=PAPER, edgecolors=colours, linewidths=1.5, zorder=3)
    axes.scatter(after[:, 0], after[:, 1], s=60, c=colours, zorder=4)
    one_line = placed.alpha[0] == placed.alpha[1] and placed.beta[0] == placed.beta[1]  # near and far together
    for group, colour in enumerate((INK,) if one_line else (INK, MUTED)):
        own = depth if one_line else depth[placed.depth_group[kept] == group]
        if own.size and np.isfinite(placed.alpha[group]):
            span = np.array([own.min(), own.max()])
            axes.plot(span, placed.alpha[group] * span + placed.beta[group], color=colour, linewidth=2)
    slope, offset = placed.disparity_line
    if np.isfinite(slope):
        span = np.linspace(depth.min(), depth.max(), 60)
        axes.plot(span, 1 / np.maximum(slope / span + offset, 1e-6), color=INK, linewidth=2)
    axes.margins(0.12)
    axes.set_xlabel("relative depth of the person (1 / disparity)", color=MUTED, fontsize=8)
    axes.yaxis.set_major_formatter("{x:g} m")
    axes.autoscale_view()
    number_people(axes, after, kept, 15)
