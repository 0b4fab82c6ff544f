"""Backdrops of synthetic pictures: level ground, a skyline and the sky, as colours and as distances.

Everything is computed per pixel along its ray and filtered to the pixel's footprint, so that textures fade towards the
horizon. Level frame (see `crowd`), metres; colours are linear RGB in 0 .. 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dto_pipeline.lab.crowd import View

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Theme:
    """Colours of a place."""

    ground: str  # one of `_GROUNDS`
    skyline: str  # one of `_SKYLINES`
    earth: tuple[Colour, Colour]  # two colours the ground alternates between
    backdrop: Colour  # colour of the skyline before haze
    zenith: Colour  # sky far above the horizon
    haze: Colour  # sky at the horizon, and what far things fade into
    sun_colour: Colour  # of direct light
    sun_height: float  # elevation of the sun [rad]


THEMES = (
    Theme(
        *("tiles", "city", ((0.40, 0.37, 0.33), (0.33, 0.31, 0.28)), (0.28, 0.25, 0.24)),
        *((0.12, 0.30, 0.64), (0.66, 0.77, 0.87), (1.0, 0.94, 0.84), 0.85),
    ),
    Theme(
        *("grass", "trees", ((0.13, 0.26, 0.06), (0.17, 0.31, 0.08)), (0.05, 0.13, 0.04)),
        *((0.10, 0.28, 0.66), (0.70, 0.80, 0.88), (1.0, 0.95, 0.86), 0.95),
    ),
    Theme(
        *("sand", "hills", ((0.60, 0.47, 0.31), (0.55, 0.42, 0.27)), (0.20, 0.20, 0.26)),
        *((0.16, 0.24, 0.52), (0.92, 0.72, 0.52), (1.0, 0.82, 0.60), 0.5),
    ),
    Theme(
        *("court", "trees", ((0.36, 0.15, 0.10), (0.33, 0.14, 0.10)), (0.07, 0.14, 0.07)),
        *((0.20, 0.38, 0.66), (0.74, 0.80, 0.86), (1.0, 0.96, 0.90), 0.75),
    ),
)
_SKYLINE_DISTANCE = 48.0  # how far away the skyline stands [m]
_HAZE_LENGTH = 150.0  # distance over which haze takes 63 % of a colour [m]
_SKY_Z = 1e4  # stands for infinity in the z map [m]
_NOISE_TILE = 64  # lattice points along each side of a tile of smooth noise, which repeats without seams


@dataclass(frozen=True)
class Backdrop:
    """A place without people."""

    colour: np.ndarray  # (H, W, 3) float32 linear RGB
    z: np.ndarray  # (H, W) float32 distance along the camera axis [m]; 1e4 in the sky
    is_ground: np.ndarray  # (H, W) bool


@dataclass(frozen=True)
class _Ground:
    """n pixels of the ground, level frame; `tile` is the noise that its textures are made of."""

    x: np.ndarray  # (n,) [m]
    z: np.ndarray  # (n,) [m]
    across: np.ndarray  # (n,) size of the pixel's footprint along x [m]
    along: np.ndarray  # (n,) along z [m]
    tile: np.ndarray

    @classmethod
    def of(cls, rays: np.ndarray, ground_z: np.ndarray, view: View, tile: np.ndarray) -> _Ground:
        """Where rays (n, 3) meet the ground, z (n,) metres along the camera axis."""
        x, z = rays[:, 0] * ground_z, rays[:, 2] * ground_z
        sharp = ground_z / view.focal  # footprint of a pixel facing the ground
        along = sharp * ground_z / view.eye_height  # stretched by the grazing view
        return cls(x, z, sharp + along * np.abs(x) / z, along, tile)

    def noise(self, x: np.ndarray, z: np.ndarray, finest: float) -> np.ndarray:
        """(n,) noise at places of the tile; it fades where footprints are larger than `finest` [m]."""
        return sample_noise(self.tile, x, z) * np.exp(-((self.along / finest) ** 2))


def noise_tile(rng: np.random.Generator) -> np.ndarray:
    """(64, 64) float32 lattice of values in -1 .. 1 for `sample_noise`."""
    return rng.uniform(-1, 1, (_NOISE_TILE, _NOISE_TILE)).astype(np.float32)


def sample_noise(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smoothly interpolated values of a tile, -1 .. 1; one lattice step is one unit of x or y, repeating every 64."""
    column, row = np.floor(x), np.floor(y)
    u, v = (x - column).astype(np.float32), (y - row).astype(np.float32)
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    c0, r0 = column.astype(np.int64) % _NOISE_TILE, row.astype(np.int64) % _NOISE_TILE
    c1, r1 = (c0 + 1) % _NOISE_TILE, (r0 + 1) % _NOISE_TILE
    upper = tile[r0, c0] * (1 - u) + tile[r0, c1] * u
    lower = tile[r1, c0] * (1 - u) + tile[r1, c1] * u
    return upper * (1 - v) + lower * v


def sun_direction(theme: Theme, rng: np.random.Generator) -> np.ndarray:
    """(3,) unit vector towards the sun in the level frame: up, to one side and rather behind the camera."""
    side = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.1)
    flat = np.cos(theme.sun_height)
    return np.array([flat * np.sin(side), -np.sin(theme.sun_height), -flat * np.cos(side)])


def build_backdrop(view: View, theme: Theme, rng: np.random.Generator) -> Backdrop:
    """Ground, skyline and sky as the camera sees them."""
    u = (np.arange(view.width) + 0.5 - view.width / 2) / view.focal
    v = (np.arange(view.height) + 0.5 - view.height / 2) / view.focal
    camera = np.stack(np.broadcast_arrays(u[None, :], v[:, None], 1.0), axis=-1)
    # through pixel centres, of length 1 along the camera axis
    rays = (camera @ view.level_to_camera).astype(np.float32)
    flat = np.hypot(rays[..., 0], rays[..., 2])
    ground_z = view.eye_height / np.maximum(rays[..., 1], 1e-6)  # along the camera axis: the ray's parameter
    wall_z = _SKYLINE_DISTANCE / flat
    is_ground = ground_z * flat < _SKYLINE_DISTANCE
    up, angle = -rays[..., 1] / flat, np.arctan2(rays[..., 0], rays[..., 2])  # tangent of the elevation, azimuth [rad]
    top, wall_colour = _SKYLINES[theme.skyline](angle, up, theme, noise_tile(rng))
    is_wall = ~is_ground & (up < top)
    z = np.where(is_ground, ground_z, np.where(is_wall, wall_z, _SKY_Z)).astype(np.float32)
    colour = _sky_colour(rays, flat, theme, noise_tile(rng))
    colour[is_wall] = haze_over(wall_colour[is_wall], z[is_wall], theme)
    ground = _Ground.of(rays[is_ground], ground_z[is_ground], view, noise_tile(rng))
    colour[is_ground] = haze_over(_GROUNDS[theme.ground](ground, theme).astype(np.float32), z[is_ground], theme)
    return Backdrop(colour, z, is_ground)


def haze_over(colour: np.ndarray, z: np.ndarray, theme: Theme) -> np.ndarray:
    """Colours (n, 3) seen through z (n,) metres of air."""
    clear = np.exp(-z / _HAZE_LENGTH)[:, None]
    return (colour * clear + np.array(theme.haze, dtype=np.float32) * (1 - clear)).astype(np.float32)


def _sky_colour(rays: np.ndarray, flat: np.ndarray, theme: Theme, tile: np.ndarray) -> np.ndarray:
    """(H, W, 3) gradient from haze to zenith with thin clouds."""
    up = np.clip(-rays[..., 1] / flat, 0, 1)
    share = (1 - np.exp(-3.2 * up))[..., None]
    colour = np.array(theme.haze) * (1 - share) + np.array(theme.zenith) * share
    reach = 1.0 / (up + 0.12)  # clouds lie on a plane overhead
    x, y = rays[..., 0] / flat * reach, rays[..., 2] / flat * reach
    cloud = sample_noise(tile, 1.6 * x, 2.4 * y) + 0.5 * sample_noise(tile, 4.1 * x + 9, 6.0 * y)
    cover = np.clip(1.5 * cloud - 0.25, 0, 1)[..., None] * np.clip(3 * up, 0, 0.75)[..., None]
    return (colour * (1 - cover) + 0.95 * np.array(theme.sun_colour) * cover).astype(np.float32)


def _tiles(at: _Ground, theme: Theme) -> np.ndarray:
    """(n, 3) one-metre paving stones with joints, each stone a little different."""
    stone = at.tile[np.floor(at.z).astype(np.int64) % 64, np.floor(at.x).astype(np.int64) % 64]
    fade = np.exp(-((at.along / 0.5) ** 2))
    shade = 1 + 0.13 * stone * fade + 0.05 * at.noise(9 * at.x, 9 * at.z, 0.06)
    checker = 0.5 + 0.5 * fade * np.where((np.floor(at.x) + np.floor(at.z)) % 2 == 0, 1, -1)
    colour = _mix(theme.earth, checker) * shade[:, None]
    joints = np.maximum(_line(at.x, 1.0, 0.035, at.across), _line(at.z, 1.0, 0.035, at.along))
    return colour * (1 - 0.55 * joints)[:, None]


def _grass(at: _Ground, theme: Theme) -> np.ndarray:
    """(n, 3) mown lawn: soft stripes, tufts, patches."""
    stripes = 0.5 + 0.5 * np.tanh(6 * np.sin(np.pi * (0.35 * at.x + 0.2 * at.z))) * np.exp(-((at.across / 0.4) ** 2))
    tufts, patches = at.noise(14 * at.x, 10 * at.z, 0.05), at.noise(0.7 * at.x, 0.5 * at.z, 1.5)
    return _mix(theme.earth, stripes) * (1 + 0.22 * tufts + 0.14 * patches)[:, None]


def _sand(at: _Ground, theme: Theme) -> np.ndarray:
    """(n, 3) beach: ripples and a few damp patches."""
    ripple, grain = at.noise(1.4 * at.x + 0.8 * at.z, 6 * at.z, 0.12), at.noise(30 * at.x, 30 * at.z, 0.02)
    damp = 0.5 + 0.5 * sample_noise(at.tile, 0.3 * at.x, 0.25 * at.z)
    return _mix(theme.earth, damp) * (1 + 0.1 * ripple + 0.06 * grain)[:, None]


def _court(at: _Ground, theme: Theme) -> np.ndarray:
    """(n, 3) red sports ground with white lines every four metres."""
    patches = 0.5 + 0.5 * sample_noise(at.tile, 0.5 * at.x, 0.5 * at.z)
    colour = _mix(theme.earth, patches) * (1 + 0.1 * at.noise(20 * at.x, 20 * at.z, 0.03))[:, None]
    white = np.maximum(_line(at.x + 2, 4.0, 0.09, at.across), _line(at.z + 1, 4.0, 0.09, at.along))[:, None]
    return colour * (1 - 0.8 * white) + 0.8 * 0.75 * white


def _line(position: np.ndarray, spacing: float, width: float, footprint: np.ndarray) -> np.ndarray:
    """Share of each pixel's footprint covered by lines of a `width` every `spacing` metres."""
    distance = np.abs((position / spacing + 0.5) % 1.0 - 0.5) * spacing
    reach = np.maximum(footprint, 1e-6)
    cover = np.clip((width / 2 - distance) / reach + 0.5, 0, 1) * np.minimum(width / reach, 1)
    return cover * np.exp(-((reach / (0.4 * spacing)) ** 2))


def _mix(colours: tuple[Colour, Colour], share: np.ndarray) -> np.ndarray:
    return np.array(colours[0]) * (1 - share[:, None]) + np.array(colours[1]) * share[:, None]


def _trees(angle: np.ndarray, up: np.ndarray, theme: Theme, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row of trees: tangent of its elevation (H, W) at the azimuth of each pixel, and its colour (H, W, 3)."""
    waves = [w * sample_noise(tile, f * angle, 0 * angle + f) for f, w in ((9, 0.5), (31, 0.3), (90, 0.12))]
    leaves = sample_noise(tile, 120 * angle, 120 * up) + sample_noise(tile, 45 * angle, 45 * up)
    colour = np.array(theme.backdrop) * (1 + 0.22 * leaves[..., None] + 2.2 * up[..., None])
    return 0.10 + 0.045 * np.sum(waves, axis=0), colour


def _hills(angle: np.ndarray, up: np.ndarray, theme: Theme, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two ranges of hills; returns as `_trees` does."""
    near = 0.035 + 0.03 * sample_noise(tile, 5 * angle, 0 * angle + 3)
    far = 0.075 + 0.045 * sample_noise(tile, 3 * angle, 0 * angle + 8)
    hazier = np.where(up < near, 0.0, 0.55)[..., None]
    return np.maximum(near, far), np.array(theme.backdrop) * (1 - hazier) + np.array(theme.haze) * hazier


def _city(angle: np.ndarray, up: np.ndarray, theme: Theme, tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Houses with rows of windows; returns as `_trees` does."""
    along = angle * 9
    house = np.floor(along + 0.3 * np.sin(1.9 * along)).astype(np.int64) % 64
    top = 0.12 + 0.055 * tile[5, house]
    window = ((along * 5 % 1.0 > 0.4) & (up / 0.022 % 1.0 > 0.45) & (up < top - 0.012) & (up > 0.012))[..., None]
    tint = 1 + 0.35 * tile[np.array([11, 12, 13])[:, None, None], house].transpose(1, 2, 0)
    wall = np.array(theme.backdrop) * (0.85 + 0.5 * tile[9, house])[..., None] * tint
    return top, np.where(window, 0.45 * wall, wall * 1.25)


_GROUNDS = {"tiles": _tiles, "grass": _grass, "sand": _sand, "court": _court}
_SKYLINES = {"trees": _trees, "hills": _hills, "city": _city}
