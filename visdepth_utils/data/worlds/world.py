"""Small pictured worlds with exact ground truth, 64x64 RGB.

*Shapes* have 2-5 objects in a 3x3 layout, *charts* 2-5 coloured bars with an axis, values 0-99. A
scene is drawn from its seed: training and held-out scenes use disjoint ranges of seeds, and
`scene_key` lets a test prove that no held-out scene occurs in training.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 215, 30),
    "purple": (140, 50, 180),
    "orange": (250, 130, 20),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
SIZES = ("small", "large")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
# Disjoint seed ranges: a training run may use any part of the first, the frozen sets only the
# second.
TRAIN_SEEDS = range(0, 2**30)
VALIDATION_SEEDS = range(2**30, 2**30 + 2**20)
DISTILL_SEEDS = range(2**30 + 2**20, 2**30 + 2**21)
HELD_OUT_SEEDS = range(2**31, 2**31 + 2**20)

_SCALE = 4  # supersampling: edges are anti-aliased, so a bar's height is readable below one pixel
_RADIUS = {"small": 4.5, "large": 8.5}
_BASELINE, _PIXELS_PER_UNIT, _AXIS_X = 59.0, 0.54, 5.0


@dataclass(frozen=True)
class Thing:
    """One object of a shapes world; `cell` is 0..8 in reading order."""

    size: str
    colour: str
    shape: str
    cell: int

    @property
    def row(self) -> str:
        """Top, middle or bottom."""
        return ROWS[self.cell // 3]

    @property
    def column(self) -> str:
        """Left, center or right."""
        return COLUMNS[self.cell % 3]

    @property
    def place(self) -> str:
        """Row and column."""
        return f"{self.row} {self.column}"


@dataclass(frozen=True)
class Bar:
    """One bar of a chart, left to right; value 0..99."""

    colour: str
    value: int


@dataclass(frozen=True)
class Scene:
    """Ground truth of a picture: `things` in reading order, or `bars` left to right."""

    kind: str
    things: tuple[Thing, ...] = ()
    bars: tuple[Bar, ...] = ()


def draw_scene(seed: int, kind: str) -> Scene:
    """Draw a scene of `kind` ("shapes" or "charts") from its seed."""
    rng = np.random.default_rng([seed, 0 if kind == "shapes" else 1])
    n = int(rng.integers(2, 6))
    if kind == "charts":
        colours = rng.permutation(list(COLOURS))[:n]
        return Scene(kind, bars=tuple(Bar(str(c), int(rng.integers(0, 100))) for c in colours))
    if kind != "shapes":
        raise ValueError(f"unknown kind of world {kind!r}: use 'shapes' or 'charts'")
    cells = sorted(int(c) for c in rng.permutation(9)[:n])
    # A scene keeps to a few colours and shapes, so that counts above one are common.
    colours = [str(c) for c in rng.permutation(list(COLOURS))[: rng.integers(2, 5)]]
    shapes = [str(c) for c in rng.permutation(SHAPES)[: rng.integers(3, 5)]]
    seen: set[tuple[str, str]] = set()
    things: list[Thing] = []
    for cell in cells:
        while True:  # colour and shape together name an object, so that questions have one referent
            pair = (str(rng.choice(colours)), str(rng.choice(shapes)))
            if pair not in seen:
                break
        seen.add(pair)
        things.append(Thing(str(rng.choice(SIZES)), *pair, cell))
    return Scene(kind, things=tuple(things))


def scene_key(scene: Scene) -> str:
    """A string equal for two scenes exactly when their ground truth is equal."""
    if scene.kind == "charts":
        return "|".join(f"{b.colour}{b.value}" for b in scene.bars)
    return "|".join(f"{t.size}-{t.colour}-{t.shape}-{t.cell}" for t in scene.things)


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Corner points of a shape of radius `r` round (x, y), in pixels."""
    if shape == "square":
        s = r * 0.86
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if shape == "diamond":
        return [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)]
    if shape == "cross":
        a = r * 0.34
        return [
            (x - a, y - r), (x + a, y - r), (x + a, y - a), (x + r, y - a), (x + r, y + a), (x + a,
            y + a),
            (x + a, y + r), (x - a, y + r), (x - a, y + a), (x - r, y + a), (x - r, y - a), (x - a,
            y - a),
        ]  # fmt: skip
    points = []
    for k in range(10):  # a five-pointed star
        radius = r * (1.08 if k % 2 == 0 else 0.45)
        angle = -np.pi / 2 + k * np.pi / 5
        points.append((x + radius * np.cos(angle), y + radius * np.sin(angle)))
    return points


def _paint(rng: np.random.Generator, name: str, spread: int = 14) -> tuple[int, int, int]:
    jitter = rng.integers(-spread, spread + 1, 3)
    r, g, b = (int(v) for v in np.clip(np.array(COLOURS[name]) + jitter, 0, 255))
    return r, g, b


def bar_columns(n_bars: int) -> list[tuple[float, float]]:
    """Left and right edge in pixels of each of `n_bars` bars."""
    slot = (SIZE - _AXIS_X - 3) / n_bars
    width = min(slot * 0.78, 12.0)
    centres = [_AXIS_X + 2 + slot * (k + 0.5) for k in range(n_bars)]
    return [(c - width / 2, c + width / 2) for c in centres]


def bar_top(value: int) -> float:
    """Upper edge of a bar in pixels from the top of the picture."""
    return _BASELINE - 1.0 - _PIXELS_PER_UNIT * value


def _placed(
    rng: np.random.Generator, thing: Thing
) -> tuple[float, float, float, tuple[int, int, int]]:
    """Where and how an object is drawn: x, y, radius, paint."""
    cell = SIZE / 3
    x = (thing.cell % 3 + 0.5) * cell + rng.uniform(-2, 2)
    y = (thing.cell // 3 + 0.5) * cell + rng.uniform(-2, 2)
    return x, y, _RADIUS[thing.size] * rng.uniform(0.93, 1.07), _paint(rng, thing.colour)


def boxes(scene: Scene, seed: int) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of each thing or bar that `render` draws, in shares of the size."""
    rng = np.random.default_rng([seed, 7])
    rng.integers(205, 236)  # the ground
    found = []
    for thing in scene.things:
        x, y, r, _ = _placed(rng, thing)
        corners = [(x - r, y - r), (x + r, y + r)]
        corners = corners if thing.shape == "circle" else _outline(thing.shape, x, y, r)
        across, down = zip(*corners, strict=True)
        found.append((min(across), min(down), max(across), max(down)))
    columns = bar_columns(len(scene.bars)) if scene.bars else []
    for bar, (left, right) in zip(scene.bars, columns, strict=True):
        found.append((left, bar_top(bar.value), right, _BASELINE - 0.5))
    return [tuple(v / SIZE for v in box) for box in found]


def render(scene: Scene, seed: int) -> Image.Image:
    """Draw the picture: jittered places, noisy colours, noisy background. Deterministic by seed."""
    rng = np.random.default_rng([seed, 7])
    ground = int(rng.integers(205, 236))
    canvas = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), (ground, ground, ground))
    draw = ImageDraw.Draw(canvas)
    scaled = lambda points: [(px * _SCALE, py * _SCALE) for px, py in points]  # noqa: E731
    for thing in scene.things:
        x, y, r, paint = _placed(rng, thing)
        if thing.shape == "circle":
            draw.ellipse([v * _SCALE for v in (x - r, y - r, x + r, y + r)], fill=paint)
        else:
            draw.polygon(scaled(_outline(thing.shape, x, y, r)), fill=paint)
    if scene.kind == "charts":
        ink = (40, 40, 40)
        for tick in (0, 25, 50, 75, 100):
            y = bar_top(tick) * _SCALE
            draw.line([(2 * _SCALE, y), (_AXIS_X * _SCALE, y)], fill=ink, width=2)
        corner = (_AXIS_X, _BASELINE)
        for ends in ([(_AXIS_X, 2), corner], [corner, (SIZE, _BASELINE)]):
            draw.line(scaled(ends), fill=ink, width=3)
        for bar, (left, right) in zip(scene.bars, bar_columns(len(scene.bars)), strict=True):
            box = (left, bar_top(bar.value), right, _BASELINE - 0.5)
            draw.rectangle([v * _SCALE for v in box], fill=_paint(rng, bar.colour))
    small = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.int16)
    noise = rng.normal(0, 5.0, small.shape)
    return Image.fromarray(np.clip(small + noise, 0, 255).astype(np.uint8))
