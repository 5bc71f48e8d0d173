"""Cartoon faces, drawn frame by frame: random identity, pose, light and background; an expression of any intensity.

Everything is drawn in face coordinates: the origin between eyes and mouth, ``u`` to the right, ``v`` down, the chin
near ``v = 1``. Every shape is a signed distance (negative inside), blended over what lies below with a soft edge one
pixel wide, so that slow motion moves through grey levels as in a film.
"""

from __future__ import annotations

import dataclasses

import numpy as np

SIZE = 48  # pixels
Array = np.ndarray

# What each expression does to the neutral face at intensity 1:
#              mouth corners up, mouth open, mouth wide, brows up, brows inward down, eyes open
EXPRESSIONS = {
    "happiness": (0.9, 0.25, 0.30, 0.1, 0.0, -0.35),
    "sadness": (-0.8, 0.00, -0.15, 0.1, -0.9, -0.25),
    "anger": (-0.4, 0.10, -0.05, -0.5, 0.9, 0.15),
    "surprise": (0.0, 1.00, -0.30, 1.0, 0.0, 0.8),
    "disgust": (-0.7, 0.30, 0.15, -0.4, 0.5, -0.6),
    "fear": (-0.3, 0.55, 0.25, 0.8, -0.8, 0.6),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """One person in front of one background in one light; drawn at random by `random_scene`."""

    skin: Array  # (3,) RGB in [0, 1], as all colours here
    hair: Array
    iris: Array
    lips: Array
    background: Array  # (2, 3): above and below
    light: float
    light_direction: float  # radians
    head: tuple[float, float]  # half width and height
    eye_distance: float
    eye_size: float
    brow_height: float
    brow_thickness: float
    mouth_height: float
    mouth_width: float
    hairline: float


def random_scene(random: np.random.Generator) -> Scene:
    """A person, a background and a light."""
    tone = random.uniform(0.35, 1.0)
    return Scene(
        skin=np.clip(tone * np.array([0.98, 0.80, 0.68]) + random.normal(0, 0.03, 3), 0, 1),
        hair=random.uniform(0.05, 0.6) * random.uniform(0.6, 1.0, 3),
        iris=random.uniform(0.1, 0.6, 3),
        lips=np.clip(tone * np.array([0.80, 0.35, 0.35]) + random.normal(0, 0.04, 3), 0, 1),
        background=random.uniform(0, 1, (2, 3)),
        light=random.uniform(0.75, 1.15),
        light_direction=random.uniform(0, 2 * np.pi),
        head=(random.uniform(0.72, 0.88), random.uniform(0.95, 1.1)),
        eye_distance=random.uniform(0.30, 0.38),
        eye_size=random.uniform(0.13, 0.17),
        brow_height=random.uniform(0.24, 0.30),
        brow_thickness=random.uniform(0.03, 0.055),
        mouth_height=random.uniform(0.46, 0.54),
        mouth_width=random.uniform(0.26, 0.34),
        hairline=random.uniform(-0.75, -0.55),
    )


def random_motion(random: np.random.Generator, num_frames: int) -> Array:
    """``(T, 5)`` head poses that drift slowly: shift x and y, rotation, scale, turn to the side."""
    start, end = random.normal(0, 1, (2, 5)) * [0.08, 0.08, 0.10, 0.05, 0.08]
    end = start + 0.5 * (end - start)
    phase = 0.5 - 0.5 * np.cos(np.linspace(0, np.pi, num_frames))[:, None]
    return start + phase * (end - start)


def draw(scene: Scene, expression: str, intensity: Array, motion: Array, size: int = SIZE) -> Array:
    """Frames of a face.

    Args:
        scene: who and where.
        expression: a key of `EXPRESSIONS`.
        intensity: ``(T,)``, 0 neutral, 1 full.
        motion: ``(T, 5)``, see `random_motion`.
        size: of the square frames, in pixels.

    Returns:
        uint8 ``(T, size, size, 3)``.
    """
    pixels = (np.arange(size, dtype=np.float32) + 0.5) / size * 2.6 - 1.3
    x, y = np.meshgrid(pixels, pixels)
    motion, intensity = motion.astype(np.float32), intensity.astype(np.float32)
    shift_x, shift_y, angle, scale, turn = (m[:, None, None] for m in motion.T)
    x, y = x - shift_x, y - shift_y
    u = (np.cos(angle) * x + np.sin(angle) * y) / (1 + scale)
    v = (np.cos(angle) * y - np.sin(angle) * x) / (1 + scale)
    canvas = _Canvas(scene.background, v, pixel=2.6 / size)

    shade = 1 + 0.25 * (np.cos(scene.light_direction) * u + np.sin(scene.light_direction) * v)
    width, height = scene.head
    canvas.paint(scene.hair, _ellipse(u, v, 0, -0.15, width + 0.1, height + 0.05))
    canvas.paint(scene.skin, np.maximum(_ellipse(u, v, 0, 0, width, height), scene.hairline - v + 0.15 * u**2), shade)

    inner = u - turn  # the features turn further than the outline
    corner, opening, wide, brow, frown, eye = (value * intensity[:, None, None] for value in EXPRESSIONS[expression])
    for side in (-1, 1):
        _eye(canvas, scene, inner * side, v, turn * side, eye, brow, frown)
    canvas.paint(scene.skin * 0.75, _ellipse(inner, v, 0, 0.18, 0.05, 0.10), shade)
    _mouth(canvas, scene, inner, v, corner, opening, wide)
    return (np.clip(canvas.image * scene.light, 0, 1) * 255).round().astype(np.uint8)


def _eye(canvas: _Canvas, scene: Scene, u: Array, v: Array, gaze: Array, eye: Array, brow: Array, frown: Array) -> None:
    """The right eye and its brow; the left one is the same in mirrored coordinates."""
    du, dv = u - scene.eye_distance, v + 0.12
    outline = _ellipse(du, dv, 0, 0, scene.eye_size, scene.eye_size * 0.62 * (1 + 0.75 * eye))
    canvas.paint(np.array([0.97, 0.97, 0.97]), outline)
    iris = _ellipse(du - 0.3 * gaze, dv, 0, 0, scene.eye_size * 0.5, scene.eye_size * 0.5)
    canvas.paint(scene.iris, np.maximum(iris, outline))
    line = -scene.brow_height - 0.14 * brow + 0.5 * frown * (scene.eye_size - du).clip(0, 0.34) * 0.9 - 0.06 * frown
    canvas.paint(
        scene.hair * 0.7, np.maximum(np.abs(dv - line) - scene.brow_thickness, np.abs(du) - scene.eye_size * 1.25)
    )


def _mouth(canvas: _Canvas, scene: Scene, u: Array, v: Array, corner: Array, opening: Array, wide: Array) -> None:
    half_width = scene.mouth_width * (1 + wide)
    s = (u / half_width) ** 2
    line = scene.mouth_height + 0.18 * corner * (0.35 - s)
    gap = 0.20 * opening * (1 - s).clip(0)
    distance, ends = np.abs(v - line), np.abs(u) - half_width
    canvas.paint(scene.lips, np.maximum(distance - gap - 0.05 * (1.2 - s).clip(0.2), ends))
    canvas.paint(np.array([0.25, 0.05, 0.08]), np.maximum(distance - gap, ends))


def _ellipse(u: Array, v: Array, cu: float, cv: float, ru: float | Array, rv: float | Array) -> Array:
    """Signed distance to an ellipse, near enough at its edge."""
    return (np.hypot((u - cu) / ru, (v - cv) / rv) - 1) * np.minimum(ru, rv)


class _Canvas:
    def __init__(self, background: Array, v: Array, pixel: float) -> None:
        height = np.clip((v[..., None] + 1.3) / 2.6, 0, 1)
        above, below = background.astype(np.float32)
        self.image = above + height * (below - above)  # (T, size, size, 3)
        self._pixel = pixel

    def paint(self, color: Array, distance: Array, shade: Array | None = None) -> None:
        """Blend ``color`` over the inside of a shape."""
        inside = distance < self._pixel / 2
        alpha = np.minimum(0.5 - distance[inside] / self._pixel, 1)[:, None]
        paint = color.astype(np.float32) if shade is None else color.astype(np.float32) * shade[inside][:, None]
        below = self.image[inside]
        self.image[inside] = below + alpha * (paint - below)
