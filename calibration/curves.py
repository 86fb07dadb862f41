"""Tables like ``layer_geometry``'s whose curves over depth are known (C1, C2)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "LAYERS",
    "SHAPES",
    "TEXTS",
    "Curve",
    "curves_table",
    "image_table",
    "text_table",
    "worlds_of_c1",
    "worlds_of_c2",
]

LAYERS = 12
Curve = Callable[[Any], Any]
"""Depth z from 0 to 1 -> mean of a measure; dimensions on the log scale."""
Shape = tuple[Curve, Curve, Curve]
"""Matrix entropy, log intrinsic dimension, curvature in degrees."""


def plateau(start: float, end: float, scale: float = 0.06) -> Curve:
    """Changes at once and then stays."""
    return lambda z: end + (start - end) * np.exp(-z / scale)


def drift(start: float, end: float) -> Curve:
    """Changes evenly over the whole depth."""
    return lambda z: start + (end - start) * z


def jump(start: float, end: float) -> Curve:
    """Changes near the end only."""
    return lambda z: np.where(z < 0.8, start, end)


def flat(level: float) -> Curve:
    """Never changes."""
    return lambda z: level + 0 * z


def slows(z: Any) -> Any:
    """Size of updates of a representation that comes to rest."""
    return 0.1 + 0.5 * np.exp(-z * 12)


def goes_on(z: Any) -> Any:
    """Size of updates of one that does not."""
    return 0.45 + 0.15 * np.exp(-z * 12)


SHAPES: dict[str, Shape] = {
    "plateau": (plateau(0.7, 0.9), plateau(3.8, 3.2), plateau(130, 92)),
    "drift": (drift(0.7, 0.45), drift(3.8, 3.2), drift(110, 92)),
    "jump": (jump(0.7, 0.9), jump(3.8, 3.2), jump(110, 92)),
    "flat": (flat(0.7), flat(3.5), flat(91)),
    # What a random decoder can do: entropy and dimension settle at once, curvature never moves.
    "look-alike": (plateau(0.7, 0.9), plateau(4.2, 3.8), flat(91)),
    "expands": (plateau(0.7, 0.9), plateau(3.2, 3.8), plateau(130, 92)),
}
MARGINS = (0.05, float(np.log(1.15)), 5.0)
"""Of the three measures in claims.yaml (a test compares them): units of simulated change."""
_NOISE = (
    ("entropy", 0, LAYERS + 1, 0.02, 0.03),
    ("id_twonn", 0, LAYERS + 1, 0.12, 0.15),
    ("id_mle", 0, LAYERS + 1, 0.05, 0.15),
    ("curvature", 1, LAYERS, 1.5, 2.0),
    ("update_ratio", 0, LAYERS, 0.02, 0.0),
    ("cka_ahead", 0, LAYERS - 1, 0.02, 0.0),
)
"""Metric, first and last layer, noise of a value, spread of the images' own levels."""


def early_change(margins: float) -> Shape:
    """All three measures change by so many margins up to layer 3, then stay; dimension falls."""

    def until(start: float, size: float) -> Curve:
        return lambda z: start + size * np.clip((z - 1 / 11) / (2 / 11), 0, 1)

    e, d, c = (margins * unit for unit in MARGINS)
    return until(0.8, -e), until(3.5 + d, -d), until(92 + c, -c)


def late_change(margins: float) -> Shape:
    """All three measures change by so many margins over the last two thirds, evenly."""

    def after(start: float, size: float) -> Curve:
        return lambda z: start + size * np.clip((z - 3 / 11) / (8 / 11), 0, 1)

    e, d, c = (margins * unit for unit in MARGINS)
    return after(0.6, e), after(3.2, d), after(92, c)


def early_then(early: float, later: float, start: float = 3 / 11, end: float = 1.0) -> Shape:
    """So many margins up to layer 3, and so many the same way, evenly, between two depths.

    The angle at a layer is that of the steps to and from it: it changes one layer ahead.
    """

    def one(unit: float, base: float, ahead: float) -> Curve:
        def curve(z: Any) -> Any:
            first = early * np.clip((z - 1 / 11) / (2 / 11), 0, 1)
            then = later * np.clip((z + ahead - start) / (end - start), 0, 1)
            return base - unit * (first + then)

        return curve

    given = zip(MARGINS, (0.9, 4.5, 130.0), (0, 0, 1 / 11), strict=True)
    return tuple(one(*of) for of in given)  # type: ignore


def random_turns(shape: Shape, seed: int) -> Shape:
    """The shape with angles that jump about from layer to layer, as rounding makes them."""
    angles = np.random.default_rng(seed).uniform(60, 130, LAYERS + 2)

    def curvature(z: Any) -> Any:
        return angles[np.rint(np.asarray(z) * (LAYERS - 1)).astype(int)]

    return shape[0], shape[1], curvature


def worlds_of_c1() -> dict[str, tuple[bool | None, Callable[[int], dict[str, Any]]]]:
    """Worlds of C1 that a rule must not get wrong.

    Returns:
        Name -> whether the claim is true there (None: neither, so that neither "supported" nor "not
        supported" is right), and seed -> arguments of ``curves_table``.
    """
    plain = early_change(3)

    def of(shape: Shape, **options: Any) -> Callable[[int], dict[str, Any]]:
        return lambda seed: {"shape": shape, "seed": seed, **options}

    def jumps(states: int) -> Callable[[int], dict[str, Any]]:
        first = (LAYERS - states) / 11
        shape = early_then(3, 4, first, 12 / 11)
        return of(shape, speed=lambda z: slows(z) + 0.5 * (z > first - 1e-9))

    return {
        "early plateau": (True, of(plain)),
        "81% of ten margins early, then a drift": (True, of(early_then(8.1, 1.9))),
        "early plateau, jump in the last layer": (True, jumps(1)),
        "early plateau, jump over the last two": (True, jumps(2)),
        "early plateau, heavy tails": (True, of(plain, tails=3.0)),
        "early plateau, images alike by fours": (True, of(plain, alike=4)),
        "flat from the input": (None, of(SHAPES["flat"])),
        "flat from the input, heavy tails": (None, of(SHAPES["flat"], tails=3.0)),
        "flat from the input, images alike by fours": (None, of(SHAPES["flat"], alike=4)),
        "flat, tiny steps at random angles": (
            None,
            lambda seed: of(random_turns(SHAPES["flat"], seed), speed=flat(0.0))(seed),
        ),
        "early plateau, tiny steps at random angles": (
            None,
            lambda seed: of(random_turns(plain, seed), speed=flat(0.0))(seed),
        ),
        "60% of six margins early, then a drift": (False, of(early_then(3.6, 2.4))),
        "early plateau, change over the last four": (False, of(early_then(3, 4, 8 / 11, 1.0))),
        "drift": (False, of(SHAPES["drift"])),
        "drift, heavy tails": (False, of(SHAPES["drift"], tails=3.0)),
        "drift, images alike by fours": (False, of(SHAPES["drift"], alike=4)),
        "late change alone": (False, of(late_change(4))),
    }


def curves_table(
    shape: Shape,
    *,
    n: int = 48,
    noise: float = 1.0,
    seed: int = 0,
    speed: Curve = slows,
    apart: Curve | None = None,
    questions: int = 1,
    modality: str = "image",
    tails: float | None = None,
    alike: int = 1,
) -> pd.DataFrame:
    """A table like layer_geometry's, one type of tokens; every image has its own level.

    Args:
        shape: Mean curves.
        n: Images.
        noise: Factor on the noise of a value, 1 as in real runs.
        seed: Of the noise.
        speed: Update ratio by depth.
        apart: 1 - CKA by depth; None for the same as ``speed``.
        questions: Samples of each image.
        modality: Name of the type.
        tails: Degrees of freedom of the noise (Student's t, of the same variance); None for a
            Gaussian.
        alike: So many images in a row share half of their noise's variance.

    Returns:
        The columns of ``layer_geometry``.
    """
    rng = np.random.default_rng(seed)
    entropy, dimension, curvature = shape

    def noisy(*size: int) -> Any:
        if tails is None:
            return rng.normal(size=size)
        return rng.standard_t(tails, size=size) * np.sqrt((tails - 2) / tails)

    def points(z: Any) -> Any:
        return np.exp(dimension(z))

    means = {"entropy": entropy, "id_twonn": points, "id_mle": points, "curvature": curvature}
    means |= {"update_ratio": speed, "cka_ahead": lambda z: 1 - (apart or speed)(z)}
    parts = []
    for name, first, last, sd, spread in _NOISE:
        layers = np.arange(first, last)
        error = noisy(n * questions, len(layers)) * sd * noise
        if alike > 1:
            groups = -(-n * questions // alike)
            common = np.repeat(noisy(groups, len(layers)), alike, axis=0)[: len(error)]
            error = (error + common * sd * noise) / np.sqrt(2)
        error += np.repeat(rng.normal(size=(n, 1)) * spread, questions, axis=0)
        mean = means[name](layers / (LAYERS - 1))
        values = mean * np.exp(error) if name.startswith("id_") else mean + error
        sample, column = np.indices(values.shape)
        names = {
            "sample": [f"s{i}" for i in sample.ravel()],
            "image": [f"i{i // questions}" for i in sample.ravel()],
            "modality": modality,
        }
        rest = {"layer": layers[column.ravel()], "metric": name, "value": values.ravel()}
        parts.append(pd.DataFrame({**names, **rest, "n_tokens": 64, "note": ""}))
    return pd.concat(parts, ignore_index=True)


def image_table(shape: str, **options: Any) -> pd.DataFrame:
    """``curves_table`` of a shape by its name."""
    return curves_table(SHAPES[shape], **options)


# Image and text curves, and text in the image's places.
TEXTS: Mapping[str, tuple[Shape, Shape, Shape]] = {
    "text keeps changing": (early_change(3), late_change(4), late_change(4)),
    "both keep changing": (late_change(4), late_change(4), late_change(4)),
    "text changes more": (late_change(3), late_change(7), late_change(7)),
    "both settle": (early_change(3), early_change(4), early_change(4)),
    "neither changes": (SHAPES["flat"],) * 3,
    "image keeps changing": (late_change(4), early_change(3), early_change(3)),
    "position only": (early_change(3), late_change(4), early_change(3)),
    "both jump at the end": (SHAPES["jump"],) * 3,
}


MOVE_MARGIN = 0.02
"""Of both measures of movement in claims.yaml (a test compares them)."""


def moves(margins: float) -> Curve:
    """Size of updates above that of a representation that comes to rest, by so many margins."""
    return lambda z: slows(z) + margins * MOVE_MARGIN


def moves_at_the_end(z: Any) -> Any:
    """Size of updates that are large in the last two layers alone."""
    return slows(z) + 0.5 * (np.asarray(z) > 9.5 / 11)


# Who moves: image, text, and text in the image's places.
SPEEDS: Mapping[str, tuple[Curve, Curve, Curve]] = {
    "text keeps changing": (slows, goes_on, goes_on),
    "both keep changing": (goes_on, goes_on, goes_on),
    "text changes more": (moves(5), goes_on, goes_on),
    "both settle": (slows, slows, slows),
    "neither changes": (slows, slows, slows),
    "image keeps changing": (goes_on, slows, slows),
    "position only": (slows, goes_on, slows),
    "both jump at the end": (moves_at_the_end,) * 3,
}


def text_table(
    shapes: str | tuple[Shape, Shape, Shape],
    *,
    speeds: tuple[Curve, Curve, Curve] | None = None,
    seed: int = 0,
    n: int = 48,
    noise: float = 1.0,
    text_noise: float | None = None,
    shuffled: bool = True,
    placed: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """A table like ``text_geometry``'s and ``placed_geometry``'s, one below the other.

    Args:
        shapes: Image, text, and text in the image's places; or a name of TEXTS.
        speeds: Their update ratios by depth; None for those of the name in SPEEDS, and for shapes
            without a name an image that comes to rest and text that does not.
        seed: Of the noise.
        n: Images.
        noise: As in ``curves_table``.
        text_noise: The same for text; None for that of the image.
        shuffled: With shuffled labels (both a mixture of image and text).
        placed: With text in the image's places.
        options: Of ``curves_table``.

    Returns:
        The columns of ``layer_geometry``.
    """
    given = SPEEDS[shapes] if isinstance(shapes, str) else (slows, goes_on, goes_on)
    still, moving, in_place_moving = speeds or given
    image, text, in_place = TEXTS[shapes] if isinstance(shapes, str) else shapes
    text_noise = noise if text_noise is None else text_noise

    def mixed(a: Curve, b: Curve) -> Curve:
        return lambda z: (a(z) + b(z)) / 2

    mixture: Shape = tuple(mixed(a, b) for a, b in zip(image, text, strict=True))  # type: ignore
    groups: list[tuple[str, Shape, float, Curve]] = [
        ("image", image, noise, still),
        ("text", text, text_noise, moving),
    ]
    if placed:
        groups.append(("text in the image's places", in_place, text_noise, in_place_moving))
    if shuffled:
        between = mixed(still, moving)
        groups += [(f"shuffled {kind}", mixture, noise, between) for kind in ("image", "text")]
    return pd.concat(
        [
            curves_table(
                shape, n=n, noise=sd, seed=[seed, i], speed=speed, modality=name, **options
            )
            for i, (name, shape, sd, speed) in enumerate(groups)
        ],
        ignore_index=True,
    )


def worlds_of_c2() -> dict[str, tuple[bool, Callable[[int], dict[str, Any]]]]:
    """Worlds of C2 that a rule must not get wrong.

    Returns:
        Name -> whether the claim is true there, and seed -> arguments of ``text_table``.
    """
    still: tuple[Shape, Shape, Shape] = (SHAPES["flat"],) * 3
    text = (slows, moves(3), moves(3))

    def of(
        shapes: str | tuple[Shape, Shape, Shape], speeds: tuple[Curve, Curve, Curve], **options: Any
    ) -> Callable[[int], dict[str, Any]]:
        return lambda seed: {"shapes": shapes, "speeds": speeds, "seed": seed, **options}

    changing = TEXTS["text keeps changing"]
    one = {"apart": slows}
    return {
        "text moves and changes shape": (True, of(changing, text)),
        "text moves, all shapes are flat": (True, of(still, text)),
        "text moves, heavy tails": (True, of(still, text, tails=3.0)),
        "text moves, images alike by fours": (True, of(still, text, alike=4)),
        "text changes shape, nothing moves": (False, of(changing, (slows,) * 3)),
        "nothing moves more": (False, of(still, (slows,) * 3)),
        "nothing moves more, heavy tails": (False, of(still, (slows,) * 3, tails=3.0)),
        "nothing moves more, images alike by fours": (False, of(still, (slows,) * 3, alike=4)),
        "both move": (False, of(changing, (goes_on,) * 3)),
        "text moves by just the margin": (False, of(changing, (slows, moves(1), moves(1)))),
        "text moves in the last two layers": (
            False,
            of(changing, (slows, moves_at_the_end, moves_at_the_end)),
        ),
        "larger updates, states as alike": (False, of(changing, text, **one)),
        "position only": (False, of(changing, (slows, moves(3), slows))),
    }
