"""The plain reading of each claim: what the abstract's words imply, without our corrections.

No untrained controls, no score without the image taken off, no chance taken out. It stands beside
our verdict, so that a reader sees what separates the two. Each reading is one number, bootstrapped
by image, held against one threshold of ``as_published`` in claims.yaml: "supported" where its whole
two-sided interval lies above, "not supported" where it lies below, else "inconclusive".
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from visdepth_utils.claims import c0, c1, c2
from visdepth_utils.claims.bootstrap import by_image_and, cluster_bootstrap, require, tail_range
from visdepth_utils.claims.interchange import pairs_of, rows_of
from visdepth_utils.claims.once import only, values_of
from visdepth_utils.claims.registry import claim_entry, verdict_by
from visdepth_utils.claims.stabilisation import by_image
from visdepth_utils.claims.verdict import Reading, Verdict

__all__ = ["published", "what_separates"]

Floats = NDArray[np.float64]
Spec = dict[str, Any]
Effect = tuple[float, Floats]
"""Estimate, and the same in every resample (B,)."""


def published(
    claim: str,
    table: pd.DataFrame,
    *,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    path: str | None = None,
) -> Reading | None:
    """Read a claim as its published words imply.

    Args:
        claim: Identifier.
        table: As for ``registry.verdict``.
        control: As for ``registry.verdict``; only C6 and C7 look at it, for the score without the
            image that their endpoint is defined by.
        path: Claims file; None for data/claims.yaml.

    Returns:
        The reading; None for a claim of ours, of which the paper says nothing.

    Raises:
        ValueError: The claim is unknown, or the table lacks a column.
    """
    entry = claim_entry(claim, path)
    if "as_published" not in entry:
        return None
    own = entry["as_published"]
    nan, common = float("nan"), entry["common"]
    empty = Reading("not testable", nan, nan, nan, own["threshold"], own["label"])
    if claim in _EFFECTS:
        try:
            estimate, draws = _EFFECTS[claim](entry, table)
        except LookupError as error:
            return Reading(**{**vars(empty), "reason": str(error.args[0])})
        lo, hi = np.quantile(draws, [(1 - common["level"]) / 2, (1 + common["level"]) / 2])
    else:
        ours = verdict_by(claim, entry, table, control)
        estimate, (lo, hi) = ours.effect, ours.ci
        if not np.isfinite([estimate, lo, hi]).all():
            return Reading(**{**vars(empty), "reason": ours.reason})
    if not np.isfinite([estimate, lo, hi]).all():
        return Reading(**{**vars(empty), "reason": "a value is missing"})
    verdict = "inconclusive"
    if lo > own["threshold"]:
        verdict = "supported"
    elif hi < own["threshold"]:
        verdict = "not supported"
    numbers = (float(estimate), float(lo), float(hi), float(own["threshold"]))
    return Reading(verdict, *numbers, own["label"])


def what_separates(ours: Verdict, plain: Reading | None, path: str | None = None) -> str:
    """One sentence on the plain reading and ours.

    Args:
        ours: The verdict.
        plain: The plain reading of the same tables.
        path: Claims file; None for data/claims.yaml.

    Returns:
        The sentence; for a claim of ours, that there is no plain reading.
    """
    if plain is None:
        return "The paper makes no such statement: there is no plain reading."
    adds = claim_entry(ours.claim, path)["as_published"]["ours_adds"]
    if plain.verdict == ours.verdict:
        return f"The plain reading says the same; ours adds {adds}."
    return f"The plain reading says {plain.verdict}; with {adds}, it is {ours.verdict}."


def _early_shares(entry: Spec, table: pd.DataFrame) -> Effect:
    """C1: how much of its whole change each curve has made by one third; the smallest."""
    curves, _, note = c1.curves_of(entry, table)
    early = c1.early_layer(entry, c1.depth_of(table))
    if not len(next(iter(curves.values()))):
        raise LookupError(note or "no image has a value")
    shares = [_early_share(entry, curve, early) for curve in curves.values()]
    return min(value for value, _ in shares), np.min([draws for _, draws in shares], axis=0)


def _late_shares(entry: Spec, table: pd.DataFrame) -> Effect:
    """C2: share of its whole change that a curve makes after one third, text minus image."""
    require(table, {"image", "modality", "layer", "metric", "value"}, "table", "text_geometry")
    depth = c2.depth_of(table)
    if entry["text"] not in values_of(table, "modality"):
        raise LookupError(f"table has no tokens of group {entry['text']!r}")
    image, text = (c2.curves_of(entry, table, name) for name in ("image", entry["text"]))
    images = c2.complete([*image.values(), *text.values()])
    if not len(images):
        raise LookupError("no image has a value")
    early, differences = c2.early_layer(entry, depth), []
    for name in entry["metrics"]:
        pixels, words = (_early_share(entry, c[name].loc[images], early) for c in (image, text))
        differences.append((pixels[0] - words[0], pixels[1] - words[1]))
    values, draws = zip(*differences, strict=True)
    return float(np.mean(values)), np.mean(draws, axis=0)


def _early_share(entry: Spec, curve: pd.DataFrame, early: int) -> Effect:
    """1 - range left from the early layer on / whole range, of the mean curve."""
    at = int(np.searchsorted(curve.columns.to_numpy(), early))
    means, draws = by_image(curve, entry["common"]["resamples"], entry["common"]["seed"])
    (own, drawn) = tail_range(means), tail_range(draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(1 - own[at] / own[0]), 1 - drawn[:, at] / drawn[:, 0]


def _similarity(entry: Spec, table: pd.DataFrame) -> Effect:
    """C3: likeness of the output to the plain one, mean over pairs of layers from one third on."""
    require(table, {"similarity"}, "table", "substitution_grid")
    rows = rows_of(table, "image", "", entry["rescaled"])
    rows = rows[rows["source_layer"] != rows["layer"]]
    wide = by_image_and(rows, ["source_layer", "layer"], "similarity")
    pairs = pairs_of(entry, wide, int(rows["layer"].max()) + 1)
    return _mean(entry, wide[pairs].mean(axis=1, skipna=False).dropna())


def _frozen_early(entry: Spec, table: pd.DataFrame) -> Effect:
    """C0: share of the full model's score with image states frozen at a third, mean of tasks."""
    require(table, {"image", "task", "mode", "depth", "correct"}, "table", "truncation_sweep")
    rows = only(table, mode=entry["modes"]["processes"])
    frames = []
    for task in entry["tasks"]:
        own = only(rows, task=task)
        if own.empty:
            raise LookupError(f"table has no task {task!r} in this mode")
        curve = by_image_and(own, ["depth"], "correct")
        depth = c0.early_depth(entry, int(curve.columns[-1]))
        if depth not in curve:
            raise LookupError(f"{task} was not frozen at depth {depth}")
        own = pd.DataFrame({f"{task} early": curve[depth], f"{task} full": curve.iloc[:, -1]})
        frames.append(own.dropna())  # tasks may have pictures of their own
    tasks = entry["tasks"]

    def kept(m: dict[str, Any]) -> Any:
        return sum(m[f"{t} early"] / m[f"{t} full"] for t in tasks) / len(tasks)

    return _function(entry, pd.concat(frames, axis=1), kept)


def _kept(entry: Spec, table: pd.DataFrame) -> Effect:
    """C4: share of the full model's score, mean over depth, single-token tasks minus text."""
    require(table, {"image", "task", "mode", "depth", "correct"}, "table", "truncation_sweep")
    rows = only(table, mode=entry["mode"])
    columns: dict[str, pd.Series] = {}
    groups = {name: entry["tasks"][name] for name in ("single", "multi")}
    for task in sum(groups.values(), []):
        own = only(rows, task=task)
        if own.empty:
            raise LookupError(f"table has no task {task!r} in this mode")
        curve = by_image_and(own, ["depth"], "correct")
        at = curve.columns.to_numpy(float)
        area = np.trapezoid(curve, at / at[-1], axis=1)
        columns |= {f"{task} area": pd.Series(area, curve.index), f"{task} full": curve.iloc[:, -1]}
    wide = pd.DataFrame(columns).dropna()

    def kept(m: dict[str, Any], tasks: list[str]) -> Any:
        return sum(m[f"{t} area"] / m[f"{t} full"] for t in tasks) / len(tasks)

    return _function(entry, wide, lambda m: kept(m, groups["single"]) - kept(m, groups["multi"]))


def _changed(entry: Spec, table: pd.DataFrame) -> Effect:
    """C5: share of chains that change at all minus share of answers that change."""
    require(table, {"image", "mode", "depth", "control", "edit", "flip"}, "table", "chains.compare")
    rows = table[(table["mode"] == entry["mode"]) & (table["control"] == "")]
    below = rows[rows["depth"] < rows["depth"].max()]
    if below.empty:
        raise LookupError(f"table has no rows of mode {entry['mode']!r}")
    more = (below["edit"] > 0).astype(float) - below["flip"].astype(float)
    return _mean(entry, more.groupby(below["image"], sort=False).mean().dropna())


def _mean(entry: Spec, per_image: pd.Series) -> Effect:
    """Mean over images."""
    return _function(entry, per_image.to_frame("value"), lambda m: m["value"])


def _function(
    entry: Spec, per_image: pd.DataFrame, function: Callable[[dict[str, Any]], Any]
) -> Effect:
    """A function of means over images, in the data and in every resample."""
    if per_image.empty:
        raise LookupError("no image has a value")
    common = entry["common"]
    found = cluster_bootstrap(
        per_image.to_numpy(float), per_image.index, B=common["resamples"], seed=common["seed"]
    )
    names = list(per_image.columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = float(function(dict(zip(names, found.estimate, strict=True))))
        draws = function(dict(zip(names, found.distribution.T, strict=True)))
    return estimate, np.asarray(draws, float)


_EFFECTS: dict[str, Callable[[Spec, pd.DataFrame], Effect]] = {
    "C0": _frozen_early,
    "C1": _early_shares,
    "C2": _late_shares,
    "C3": _similarity,
    "C4": _kept,
    "C5": _changed,
}
