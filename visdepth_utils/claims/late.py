"""How much a curve over depth still changes late, and more or later than another one (C2).

Tail ranges as in ``settling``; all curves are resampled by image together, so that text and image
tokens of a sample move as one (``bounds`` in claims.yaml).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from visdepth_utils.claims.bootstrap import tail_range
from visdepth_utils.claims.stabilisation import both, by_image, interval

Floats = NDArray[np.float64]

MORE = "text changes more, and later"
SOONER = "text changes more, but settles no later"
NO_MORE = "text changes no more than the image"
SETTLED = "text has settled"
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Late:
    """Text against image tokens in one measure, in its own units (log for intrinsic dimension).

    Attributes:
        label: ``MORE``, ``SOONER``, ``NO_MORE``, ``SETTLED`` or ``UNCLEAR``.
        margin: Of the difference.
        text: Range of the text curve left after the early part.
        image: The same of the image curve.
        low: One-sided lower bound of text - image.
        high: Its upper bound.
        z_text: Stabilisation depth of the mean text curve.
        z_image: Of the mean image curve.
        z_lo: Two-sided interval of z_text - z_image, lower end.
        z_hi: Upper end.
        image_settled: Whether image tokens are within the margin after the early part; None if
            their bounds do not decide.
        shows: Whether the measure shows the pattern; None where the bounds do not decide.
        effect: (text - image) / margin.
        effects: The same in every resample, (B,).
    """

    label: str
    margin: float
    text: float
    image: float
    low: float
    high: float
    z_text: float
    z_image: float
    z_lo: float
    z_hi: float
    image_settled: bool | None
    shows: bool | None
    effect: float
    effects: Floats


def late(
    text: pd.DataFrame,
    image: pd.DataFrame,
    *,
    margin: float,
    early: int,
    depth: int,
    level: float,
    resamples: int,
    seed: int,
) -> Late:
    """Compare what two curves still change after the early part.

    Args:
        text: (images x layers), no gaps; columns are layer numbers.
        image: The same images and layers.
        margin: Of ranges, and of their difference.
        early: Last layer that counts as early.
        depth: L, for stabilisation depths.
        level: Of the bounds.
        resamples: B.
        seed: Of the resamples; equal seeds give paired curves.

    Returns:
        The comparison.
    """
    layers = text.columns.to_numpy()
    at = int(np.searchsorted(layers, early))
    curves = {name: by_image(c, resamples, seed) for name, c in (("t", text), ("i", image))}
    ranges = {name: (tail_range(m), tail_range(d)) for name, (m, d) in curves.items()}
    noise = {name: tail_range(d - m)[:, at] for name, (m, d) in curves.items()}
    (tails_t, draws_t), (tails_i, draws_i) = ranges["t"], ranges["i"]
    value, draws = tails_t[at] - tails_i[at], draws_t[:, at] - draws_i[:, at]
    doubt = float(np.quantile(noise["t"] + noise["i"], level))

    def depths(tails: Floats) -> Floats:
        return layers[np.argmax(tails <= margin, axis=-1)] / (depth - 1)

    z_lo, z_hi = interval(depths(draws_t) - depths(draws_i), level)
    settled = _settled(tails_i[at], draws_i[:, at], noise["i"], margin, level)
    if settled is False:  # both still move: text must not be earlier
        later = True if z_lo >= 0 else False if z_hi < 0 else None
    else:
        later = True if z_lo > 0 else False if z_hi <= 0 else None
    more = True if value - doubt > margin else False if value + doubt <= margin else None
    shows = both(more, later)
    label = MORE if shows else UNCLEAR
    if shows is False:
        label = SOONER if more else NO_MORE
    if more is False and _settled(tails_t[at], draws_t[:, at], noise["t"], margin, level):
        label = SETTLED
    return Late(
        label=label,
        margin=margin,
        text=float(tails_t[at]),
        image=float(tails_i[at]),
        low=float(value - doubt),
        high=float(value + doubt),
        z_text=float(depths(tails_t)),
        z_image=float(depths(tails_i)),
        z_lo=z_lo,
        z_hi=z_hi,
        image_settled=settled,
        shows=shows,
        effect=float(value / margin),
        effects=draws / margin,
    )


def mirrored(estimate: float, draws: Floats, level: float) -> tuple[float, tuple[float, float]]:
    """Estimate and interval reflected about the estimate: noise biases both sides of a difference.

    Args:
        estimate: In the data.
        draws: In the resamples.
        level: Of the interval.

    Returns:
        Bias-corrected estimate, and its two-sided interval.
    """
    lo, hi = interval(draws, level)
    return float(2 * estimate - draws.mean()), (2 * estimate - hi, 2 * estimate - lo)


def least(parts: dict[str, Late]) -> tuple[float, Floats]:
    """The smallest effect over the measures, in the data and in every resample."""
    effects = np.min([part.effects for part in parts.values()], axis=0)
    return min(part.effect for part in parts.values()), effects


def _settled(
    value: float, draws: Floats, noise: Floats, margin: float, level: float
) -> bool | None:
    """Whether a range lies within the margin, by the bounds of C1."""
    if np.quantile(draws, level) <= margin:
        return True
    return False if value - np.quantile(noise, level) > margin else None
