"""When does a curve over depth settle? Labels and shares from bootstrap bounds of tail ranges.

The tail range at layer l is the largest minus the smallest mean over layers l, l+1, ... The mean
is over images; all curves of a claim are resampled by image together (``bounds`` in claims.yaml).
``settling`` labels one curve (C1); ``late`` says how much more, or later, one changes than another
(C2).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from visdepth_utils.claims.bootstrap import cluster_bootstrap, tail_range
from visdepth_utils.claims.once import once, only

MORE = "text changes more, and later"
SOONER = "text changes more, but settles no later"
NO_MORE = "text changes no more than the image"
SETTLED = "text has settled"
Floats = NDArray[np.float64]

EARLY = "settles early"
FLAT = "already settled at the input"
LATE = "changes late"
RISES = "settles early, no fall"
TINY = "steps too small"
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Part:
    """One measure on one model, in units of the measure (log units for intrinsic dimension).

    Attributes:
        label: ``EARLY``, ``FLAT``, ``LATE``, ``RISES``, ``TINY`` or ``UNCLEAR``.
        margin: What still counts as settled.
        change: Range over the whole depth.
        left: Range left after the early part.
        left_lo: Its lower bound.
        left_hi: Its upper bound.
        layer: Stabilisation layer l*.
        within_margin: Whether what is left lies within the margin; None where the bounds do not
            decide.
        within_share: Whether it lies within the share of the whole range; None as well where no
            share was asked for.
        shows: Settled by then, changed or not, and with a fall where the claim speaks of one; None
            where the bounds do not decide. It is what counts in a control: "near-constant" is also
            shown by a curve that never moved.
        share: Early share of the change; where the claim speaks of a fall, only a fall counts, and
            a rise is below 0.
        shares: The same in every resample, (B,).
        made: Share of the change made early, (whole range - range left) / whole range, the last one
            no smaller than the margin.
        made_low: The same in every resample, as low as noise can make it, (B,).
        made_high: As high as noise can make it.
    """

    label: str
    margin: float
    change: float
    left: float
    left_lo: float
    left_hi: float
    layer: int
    within_margin: bool | None
    within_share: bool | None
    shows: bool | None
    share: float
    shares: Floats
    made: float
    made_low: Floats
    made_high: Floats


def too_small(margin: float, resamples: int) -> Part:
    """The part of a curve that cannot be measured, as the states hardly move."""
    nan, none = float("nan"), np.full(resamples, np.nan)
    return Part(TINY, margin, *[nan] * 4, 0, *[None] * 3, nan, none, nan, none, none)


def settling(
    curve: pd.DataFrame,
    *,
    margin: float,
    relative: float | None,
    early: int,
    fall: bool,
    level: float,
    resamples: int,
    seed: int,
) -> Part:
    """Label one curve.

    Args:
        curve: (images x layers), no gaps; columns are layer numbers.
        margin: Ranges up to this count as settled.
        relative: So do ranges up to this share of the whole range; None for no such share.
        early: Last layer that counts as early.
        fall: The claim speaks of a fall: the mean after ``early`` must lie below the top.
        level: Of the one-sided bounds.
        resamples: B.
        seed: Of the resamples; equal seeds give paired curves.

    Returns:
        The part.
    """
    layers = curve.columns.to_numpy()
    at = int(np.searchsorted(layers, early))
    means, draws = by_image(curve, resamples, seed)
    tails, tail_draws = tail_range(means), tail_range(draws)
    upper = np.quantile(tail_draws, level, axis=0)
    # range(signal + noise) <= range(signal) + range(noise): a lower bound for the signal.
    noise = draws - means
    ranges = tail_range(noise)
    lower = np.maximum(tails - np.quantile(ranges, level, axis=0), 0)
    within_margin = True if upper[at] <= margin else False if lower[at] > margin else None
    rest, within_share, settled = upper <= margin, None, within_margin
    if relative is not None:
        above = np.quantile(tail_draws - relative * tail_draws[:, :1], level, axis=0)
        doubt = np.quantile(ranges[:, at] + relative * ranges[:, 0], level)
        more = tails[at] - relative * tails[0] > doubt
        within_share = True if above[at] <= 0 else False if more else None
        settled, rest = either(within_margin, within_share), rest | (above <= 0)

    falls: bool | None = True
    whole, whole_draws = max(tails[0], margin), np.maximum(tail_draws[:, 0], margin)
    made = (tails[0] - tails[at]) / whole
    least_whole = np.maximum(tails[0] - ranges[:, 0], 0)
    made_low = (least_whole - tail_draws[:, at]) / np.maximum(least_whole, margin)
    made_high = (tail_draws[:, 0] - np.maximum(tails[at] - ranges[:, at], 0)) / whole_draws
    share, shares = 1 - tails[at] / whole, 1 - tail_draws[:, at] / whole_draws
    if fall:
        drop = means.max() - means[at:].mean()
        drop_draws = draws.max(axis=1) - draws[:, at:].mean(axis=1)
        doubt = np.quantile(noise.max(axis=1) - noise[:, at:].mean(axis=1), level)
        high = np.quantile(drop_draws, level)
        falls = True if drop - doubt > margin else False if high <= margin else None
        share = (drop - tails[at]) / whole
        shares = (drop_draws - tail_draws[:, at]) / whole_draws

    label = UNCLEAR
    if upper[0] <= margin:
        label = FLAT
    elif settled is False:
        label = LATE
    elif settled and lower[0] > margin:
        label = {True: EARLY, False: RISES, None: UNCLEAR}[falls]
    return Part(
        label=label,
        margin=margin,
        change=float(tails[0]),
        left=float(tails[at]),
        left_lo=float(lower[at]),
        left_hi=float(upper[at]),
        layer=int(layers[np.argmax(rest)]),
        within_margin=within_margin,
        within_share=within_share,
        shows=both(settled, falls),
        share=float(share),
        shares=shares,
        made=float(made),
        made_low=np.clip(made_low, 0, 1),
        made_high=np.clip(made_high, 0, 1),
    )


def weakest(parts: dict[str, Part]) -> tuple[float, Floats]:
    """Smallest early share over the measures, in the data and in every resample."""
    known = [part for part in parts.values() if part.label != TINY]
    return min(part.share for part in known), np.min([part.shares for part in known], axis=0)


def made_early(parts: dict[str, Part], level: float) -> tuple[float, tuple[float, float]]:
    """Share of the change made early, mean over the measures, and an interval for it.

    Args:
        parts: Of one model.
        level: Of the interval.

    Returns:
        Estimate and two-sided interval, the means of the measures' own. Noise makes ranges too
        large: each end takes the ranges that noise has enlarged where they move it outwards, and
        else those with noise taken off.
    """
    known = [part for part in parts.values() if part.label != TINY]
    lo = np.mean([np.quantile(part.made_low, (1 - level) / 2) for part in known])
    hi = np.mean([np.quantile(part.made_high, (1 + level) / 2) for part in known])
    return float(np.mean([part.made for part in known])), (float(lo), float(hi))


def interval(draws: Floats, level: float) -> tuple[float, float]:
    """Two-sided percentile interval."""
    lo, hi = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def both(a: Any, b: Any) -> bool | None:
    """And, where None is "not decided"."""
    return False if a is False or b is False else None if a is None or b is None else True


def either(a: bool | None, b: bool | None) -> bool | None:
    """Or, where None is "not decided"."""
    return True if a or b else None if a is None or b is None else False


@once
def image_layer_matrix(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric as (images x layers), mean over the samples of an image.

    Args:
        rows: Tidy table with ``image, layer, metric, value``.
        metric: Which metric.

    Returns:
        The matrix, images in order of appearance; a missing value of any sample leaves a gap.
    """
    kept = only(rows, metric=metric)
    cells = kept.groupby(["image", "layer"], sort=False)["value"]
    means = cells.mean().where(cells.count() == cells.size())
    return means.unstack("layer").sort_index(axis=1).reindex(kept["image"].unique())


def by_image(curve: pd.DataFrame, resamples: int, seed: int) -> tuple[Floats, Floats]:
    """Mean curve (layers,) and mean curves of resampled images (B, layers), paired by seed."""
    found = cluster_bootstrap(curve.to_numpy(float), curve.index, B=resamples, seed=seed)
    return found.estimate, found.distribution


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Text against image tokens in one measure, in its own units (log for intrinsic dimension).

    Attributes:
        label: What is said of it.
        margin: Of the difference.
        text: The number of text.
        image: The same of image tokens.
        low: One-sided lower bound of text - image.
        high: Its upper bound.
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
    shows: bool | None
    effect: float
    effects: Floats


@dataclass(frozen=True, kw_only=True)
class Late(Compared):
    """What two curves still change after the early part: the ranges that are left.

    Attributes:
        z_text: Stabilisation depth of the mean text curve.
        z_image: Of the mean image curve.
    """

    z_text: float
    z_image: float


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


def _settled(
    value: float, draws: Floats, noise: Floats, margin: float, level: float
) -> bool | None:
    """Whether a range lies within the margin, by the bounds of C1."""
    if np.quantile(draws, level) <= margin:
        return True
    return False if value - np.quantile(noise, level) > margin else None
