"""Score against saving: what each depth costs and keeps, and the smallest that loses little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom

from visdepth_utils.claims.bootstrap import by_image_and, cluster_bootstrap, require
from visdepth_utils.claims.once import once, only

__all__ = [
    "Recommendation",
    "measured_ratios",
    "median_bounds",
    "on_front",
    "ratios_by_repetition",
    "recommend_depth",
    "scores_and_savings",
]

TIMES = {"image_tokens", "repetition", "depth", "again", "prefill_s", "decode_s", "kv_bytes"}
SWEEP = {"sample", "image", "task", "depth"}


@dataclass(frozen=True)
class Recommendation:
    """The smallest depth that loses less than the tolerance.

    Attributes:
        depth: It and all deeper cuts pass; L where no cut does.
        lo: 2.5% percentile of the distribution.
        hi: 97.5% percentile.
        n_images: Images with a score at every depth.
        losses: One row per task and depth: ``task, depth, loss, low, high`` (one-sided bounds),
            ``passes``.
        distribution: Depth recommended in each resample of the images, (B,).
    """

    depth: int
    lo: int
    hi: int
    n_images: int
    losses: pd.DataFrame
    distribution: NDArray[np.int64] = field(repr=False, compare=False)


def recommend_depth(
    table: pd.DataFrame,
    task: str | Sequence[str],
    tolerance: float,
    *,
    score: str = "correct",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Recommendation:
    """Smallest depth at which the loss of score against the whole model is below the tolerance.

    Cuts are tried from the deepest on, and the first whose upper bound of the loss is not below the
    tolerance ends the search (tests in a fixed order need no correction), so a lucky shallow cut
    behind a bad one is not recommended. The interval is the same search in every resample of the
    images, with the distance of bound to estimate as in the whole data.

    Args:
        table: ``truncation_sweep`` of one mode, depth L among the depths.
        task: Name of the task; of several, all must pass.
        tolerance: Largest loss that counts as none, in units of the score.
        score: Column with the score.
        level: Of the one-sided bounds.
        resamples: Of the images.
        seed: Of the resamples.

    Returns:
        The recommendation. With few images no loss may be seen where there is one: of n images, a
        loss of the tolerance shows none with probability (1 - tolerance) ** n.

    Raises:
        ValueError: A missing column or task, several modes, one depth only, a tolerance that is not
            positive, or fewer than two images with a score at every depth.
    """
    require(table, SWEEP | {score}, "table", "truncation_sweep")
    if "mode" in table and table["mode"].nunique() > 1:
        raise ValueError("the table holds several modes: pass the rows of one")
    if not tolerance > 0:
        raise ValueError(f"tolerance {tolerance}: give a loss above 0, in units of the score")
    tasks = [task] if isinstance(task, str) else list(task)
    curves = {}
    for name in tasks:
        rows = only(table, task=name)
        if rows.empty:
            known = ", ".join(sorted(set(table["task"])))
            raise ValueError(f"table has no task {name!r}: it has {known}")
        curve = by_image_and(rows, ["depth"], score)
        curves[name] = curve.rsub(curve.iloc[:, -1], axis=0)
    wide = pd.concat(curves, axis=1, names=["task"]).dropna()
    depths = np.array(sorted(set(table.loc[table["task"].isin(tasks), "depth"])))
    if len(depths) < 2 or wide.shape[1] != len(depths) * len(tasks):
        raise ValueError("a depth to recommend is sought among several, the same for all tasks")
    if len(wide) < 2:
        raise ValueError(f"{len(wide)} images have a score at every depth: it takes at least 2")
    found = cluster_bootstrap(wide.to_numpy(float), wide.index, B=resamples, seed=seed)
    shape = (len(tasks), len(depths))
    loss, draws = found.estimate.reshape(shape), found.distribution.reshape(-1, *shape)
    low, high = np.quantile(draws, [1 - level, level], axis=0)
    chosen = _search((high < tolerance).all(0)[None], depths)[0]
    again = _search((draws + (high - loss) < tolerance).all(1), depths)
    lo, hi = np.quantile(again, [0.025, 0.975], method="inverted_cdf")
    losses = wide.columns.to_frame(index=False).assign(
        loss=loss.ravel(), low=low.ravel(), high=high.ravel(), passes=(high < tolerance).ravel()
    )
    return Recommendation(int(chosen), int(lo), int(hi), len(wide), losses, again)


def _search(passes: NDArray[np.bool_], depths: NDArray[np.int64]) -> NDArray[np.int64]:
    """First depth of the unbroken run of passes (B, depths) that ends at the last one."""
    unbroken = np.logical_and.accumulate(passes[:, :-1][:, ::-1], axis=1).sum(1)
    return depths[len(depths) - 1 - unbroken]


@once
def ratios_by_repetition(times: pd.DataFrame) -> pd.DataFrame:
    """Every time as a ratio to the whole model's in the same repetition.

    Args:
        times: ``timing.time_by_depth``, several counts of image tokens allowed.

    Returns:
        Its rows with ``prefill_ratio, decode_ratio, kv_ratio``; the whole model's own are 1, those
        of its second run (``again``) tell what the clock makes of no saving.

    Raises:
        ValueError: A missing column, or a repetition without the whole model.
    """
    require(times, TIMES, "times", "timing.time_by_depth")
    times = times.reset_index(drop=True)
    keys = [name for name in ("decoder", "image_tokens", "repetition") if name in times]
    last = times.groupby(keys[:-1])["depth"].transform("max")
    whole = times[(times["depth"] == last) & ~times["again"].astype(bool)].set_index(keys)
    if whole.index.has_duplicates or len(whole) < len(times[keys].drop_duplicates()):
        raise ValueError(
            "times need the whole model once in every repetition (and once more as 'again'): "
            "pass what timing.time_by_depth returns"
        )
    joined = times.join(whole[["prefill_s", "decode_s", "kv_bytes"]].add_suffix("_whole"), on=keys)
    return times.assign(
        prefill_ratio=joined["prefill_s"] / joined["prefill_s_whole"],
        decode_ratio=joined["decode_s"] / joined["decode_s_whole"],
        kv_ratio=joined["kv_bytes"] / joined["kv_bytes_whole"],
    )


def measured_ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Median and range over repetitions of every ratio.

    Args:
        times: As for ``ratios_by_repetition``.

    Returns:
        One row per decoder, count of image tokens, depth and ``again``: for each of ``prefill,
        decode, kv`` the columns ``*_ratio`` (median), ``*_least`` and ``*_most``; ``repetitions``.
    """
    ratios = ratios_by_repetition(times)
    keys = [k for k in ("decoder", "image_tokens", "depth", "again") if k in ratios]
    named = {
        f"{name}_{kind}": (f"{name}_ratio", how)
        for name in ("prefill", "decode", "kv")
        for kind, how in (("ratio", "median"), ("least", "min"), ("most", "max"))
    }
    return ratios.groupby(keys).agg(**named, repetitions=("repetition", "nunique")).reset_index()


def median_bounds(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """One-sided bounds of a median, from order statistics: no assumption on the distribution.

    The k-th largest of n values lies below the median with probability P(Bin(n, 1/2) < k).

    Args:
        values: Independent repetitions.
        level: Of each bound.

    Returns:
        (lower, upper); infinite where so few values cannot give a bound.
    """
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    # the largest k for which being wrong is at most 1 - level
    k = int(sum(binom.cdf(np.arange(n), n, 0.5) <= 1 - level))
    return (-np.inf, np.inf) if k == 0 else (float(ordered[k - 1]), float(ordered[n - k]))


def scores_and_savings(
    sweep: pd.DataFrame, ratios: pd.DataFrame, score: str = "correct"
) -> pd.DataFrame:
    """Put the score at each depth beside what that depth costs, and mark the Pareto front.

    Args:
        sweep: ``truncation_sweep`` of any tasks, one mode.
        ratios: One row per depth with columns ``depth`` and ``*_ratio``, e.g. of
            ``costs.predicted_costs`` or ``measured_ratios`` (without ``again``).
        score: Column of the sweep.

    Returns:
        One row per task and depth: ``task, depth, score, lo, hi`` (95% by image), the ratios, and
        for each ratio ``front_*``: no other depth is at once as cheap and as good, and better in
        one of the two.

    Raises:
        ValueError: A missing column, or depths of the sweep without a ratio.
    """
    require(sweep, SWEEP | {score}, "sweep", "truncation_sweep")
    if lacking := set(sweep["depth"]) - set(ratios["depth"]):
        raise ValueError(f"depth {min(lacking)} of the sweep has no ratio: measure its cost")
    costs = [name for name in ratios.columns if name.endswith("_ratio")]
    parts = []
    for task, rows in sweep.groupby("task", sort=False):
        curve = by_image_and(rows, ["depth"], score).dropna()
        found = cluster_bootstrap(curve.to_numpy(float), curve.index)
        part = pd.DataFrame({"task": task, "depth": curve.columns, "score": found.estimate})
        part = part.assign(lo=found.lo, hi=found.hi).merge(ratios[["depth", *costs]], on="depth")
        for name in costs:
            front = on_front(part[name], part["score"])
            part[f"front_{name.removesuffix('_ratio')}"] = front
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def on_front(costs: Sequence[float], scores: Sequence[float]) -> NDArray[np.bool_]:
    """Which points no other one dominates (costs no more, scores no less, and differs in one)."""
    cost, score = np.asarray(costs, float), np.asarray(scores, float)
    no_worse = (cost[:, None] <= cost) & (score[:, None] >= score)
    better = (cost[:, None] < cost) | (score[:, None] > score)
    return ~(no_worse & better).any(0)
