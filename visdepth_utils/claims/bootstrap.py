"""Cluster bootstrap, tail ranges, and bands by layer: what the rules and figures are made of.

The unit of resampling is the image: all questions about it, and all layers, move together. A
table is (n_samples, n_layers) or (n_samples,), NaN where nothing was measured; ``clusters`` names
the image of each row. Equal clusters, B and seed give equal resamples, so that quantities
computed by separate calls are paired. With one image there is no interval: NaN, never zero width.
``Interval`` and ``Resampled`` are what rules decide by: a number with its bounds. When a curve
settles: ``stabilisation``. P values over claims: ``multiplicity``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from visdepth_utils.claims.once import once

Floats = NDArray[np.float64]
Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Bootstrap:
    """Estimate with a percentile interval; ``distribution`` (B, ...) holds the resamples."""

    estimate: Any
    lo: Any
    hi: Any
    distribution: np.ndarray
    n_clusters: int
    n_items: int


def resample_weights(
    clusters: Sequence | np.ndarray, B: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster number of each row (n,), and how often each resample holds each cluster (B, C)."""
    codes, names = pd.factorize(np.asarray(clusters))  # in order of appearance
    if (codes < 0).any() or len(codes) == 0:
        raise ValueError("clusters must name an image for every row: a name is missing")
    return codes, _weights(len(names), B, seed)


@lru_cache(maxsize=8)
def _weights(C: int, B: int, seed: int) -> np.ndarray:
    """How often each resample holds each cluster, (B, C), read only."""
    chosen = np.random.default_rng(seed).integers(0, C, size=(B, C))
    flat = (chosen + C * np.arange(B)[:, None]).ravel()
    weights = np.bincount(flat, minlength=B * C).reshape(B, C).astype(np.float64)
    weights.flags.writeable = False
    return weights


def resample_means(table: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over rows of (n, ...) in every resample, (B, ...); NaN cells are left out."""
    table = np.asarray(table, dtype=np.float64)
    flat = table.reshape(len(table), -1)
    known = np.isfinite(flat)
    sums, counts = (np.ascontiguousarray(x, float) for x in (np.where(known, flat, 0), known))
    if weights.shape[1] < len(flat):  # else each row is a cluster, in order
        rows, shape = (sums, counts), (weights.shape[1], flat.shape[1])
        sums, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, codes, rows[0])
        np.add.at(counts, codes, rows[1])
    with np.errstate(invalid="ignore"):
        means = (weights @ sums) / (weights @ counts)
    return means.reshape(len(weights), *table.shape[1:])


def _quantile(x: np.ndarray, q: float | Sequence[float]) -> np.ndarray:
    """Quantiles over the first axis without NaN; NaN where nothing is left."""
    x = np.asarray(x, dtype=np.float64)
    if np.isfinite(x).all():
        return np.quantile(x, q, axis=0)
    empty = ~np.isfinite(x).any(axis=0)
    filled = np.where(empty, 0.0, np.where(np.isfinite(x), x, np.nan))
    return np.where(empty, np.nan, np.nanquantile(filled, q, axis=0))


def cluster_bootstrap(
    tables: Any,
    clusters: Sequence | np.ndarray,
    statistic: Statistic | None = None,
    *,
    B: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap:
    """Percentile interval of a function of means, resampling whole clusters.

    It covers about 90% at 95% nominal for 15-60 clusters. Of a range (max - min), which noise can
    only enlarge, it may even miss its own estimate: see ``stabilisation``.

    Args:
        tables: array (n, ...), or a tuple of arrays whose rows are the same samples.
        clusters: (n,) image of each row.
        statistic: takes one array (..., k) of means per table and works on the last axis;
            None is the mean itself.
        B: resamples.
        seed: equal seeds give equal resamples.
        level: of the two-sided interval.
    """
    tables = tables if isinstance(tables, tuple) else (tables,)
    tables = tuple(np.asarray(t, dtype=np.float64) for t in tables)
    lengths = {len(t) for t in tables} | {len(clusters)}
    if len(lengths) != 1:
        raise ValueError(f"tables and clusters differ in length: {sorted(lengths)} rows")
    statistic = statistic or (lambda *means: means[0])
    codes, weights = resample_weights(clusters, B, seed)
    C = weights.shape[1]
    estimate = statistic(*(resample_means(t, codes, np.ones((1, C)))[0] for t in tables))
    distribution = np.asarray(statistic(*(resample_means(t, codes, weights) for t in tables)))
    if C < 2:
        distribution = np.full(distribution.shape, np.nan)
    lo, hi = _quantile(distribution, [(1 - level) / 2, (1 + level) / 2])
    return Bootstrap(estimate, lo, hi, distribution, C, len(codes))


def tail_range(curve: np.ndarray) -> np.ndarray:
    """TR(l) = max - min of the curve from l to the end, (..., L); NaN at unmeasured layers."""
    curve = np.asarray(curve, dtype=np.float64)
    tail = curve[..., ::-1]
    span = np.fmax.accumulate(tail, axis=-1) - np.fmin.accumulate(tail, axis=-1)
    return np.where(np.isnan(curve), np.nan, span[..., ::-1])


def layer_bands(
    table: pd.DataFrame, B: int = 2000, seed: int = 0, *, simultaneous: bool = False
) -> pd.DataFrame:
    """Mean and 95% band by layer, clustered by image, for figures.

    Args:
        table: rows with sample, image, modality, layer, metric, value; one per combination.
        B: resamples.
        seed: equal seeds give equal resamples, in all modalities and metrics.
        simultaneous: bands that hold for all layers at once (max-|t|), not layer by layer.

    Returns:
        DataFrame[modality, layer, metric, mean, lo, hi, n_images].
    """
    keys = ["sample", "modality", "layer", "metric"]
    missing = sorted({*keys, "image", "value"} - set(table.columns))
    if missing:
        raise ValueError(f"table has no column {', '.join(missing)}: pass a layer_geometry table")
    if table.duplicated(keys).any():
        raise ValueError("table has several values per sample and layer: select one setting first")
    image_of = table.drop_duplicates("sample").set_index("sample")["image"]
    codes, weights = resample_weights(image_of.to_numpy(), B, seed)
    rows = []
    for (modality, metric), part in table.groupby(["modality", "metric"], sort=False):
        wide = part.pivot(index="sample", columns="layer", values="value").reindex(image_of.index)
        values = wide.to_numpy(dtype=np.float64)
        mean = resample_means(values, codes, np.ones((1, weights.shape[1])))[0]
        resampled = resample_means(values, codes, weights)
        if weights.shape[1] < 2:
            resampled = np.full(resampled.shape, np.nan)
        lo, hi = _quantile(resampled, [0.025, 0.975])
        if simultaneous:
            with np.errstate(all="ignore"):
                sd = np.sqrt(np.nanmean((resampled - mean) ** 2, axis=0))
                t = np.abs(resampled - mean) / np.where(sd > 0, sd, np.inf)
                reach = sd * _quantile(np.fmax.reduce(t, axis=-1), 0.95)
            lo, hi = mean - reach, mean + reach
        for j, layer in enumerate(wide.columns):
            n_images = len(np.unique(codes[np.isfinite(values[:, j])]))
            rows.append((modality, layer, metric, mean[j], lo[j], hi[j], n_images))
    columns = ["modality", "layer", "metric", "mean", "lo", "hi", "n_images"]
    return pd.DataFrame(rows, columns=columns)


def noted(rows: pd.DataFrame) -> str:
    """What is most often noted where a value is missing.

    Args:
        rows: Columns ``value`` and, if there are notes, ``note``.

    Returns:
        The note, empty if there is none.
    """
    notes = rows.loc[rows["value"].isna(), "note"] if "note" in rows else pd.Series(dtype=str)
    notes = notes.replace("", None).dropna()
    return "" if notes.empty else str(notes.mode().iloc[0])


def aside(row: dict[str, Any]) -> str:
    """A control in the words of a reason: its name, and why it was not measured.

    Args:
        row: Of ``Verdict.controls``.

    Returns:
        Name, or name and note.
    """
    note = row.get("note")
    return f"{row['control']}: {note}" if isinstance(note, str) and note else str(row["control"])


@dataclass(frozen=True)
class Interval:
    """An estimate, its two-sided interval, and its one-sided bounds.

    Attributes:
        value: Estimate.
        lo: Lower end of the two-sided interval.
        hi: Its upper end.
        low: One-sided lower bound, held against margins.
        high: One-sided upper bound.
    """

    value: float
    lo: float
    hi: float
    low: float
    high: float

    def below(self, margin: float) -> bool | None:
        """Whether it lies below the margin; None where the bounds do not decide."""
        return True if self.high < margin else False if self.low >= margin else None

    def above(self, margin: float) -> bool | None:
        """Whether it lies above the margin; None where the bounds do not decide."""
        return True if self.low > margin else False if self.high <= margin else None

    def row(self, measure: str, label: str = "", margin: float = float("nan")) -> dict[str, Any]:
        """A line of ``Verdict.details``."""
        numbers = {"estimate": self.value, "lo": self.lo, "hi": self.hi, "margin": margin}
        return {"measure": measure, "label": label} | numbers


def no_more(high: float, more: str = "more", less: str = "less") -> str:
    """What is said of a difference that does not lie above 0 beyond doubt.

    Args:
        high: Upper end of its interval.
        more: The comparative that was asked for.
        less: Its opposite.

    Returns:
        The opposite where the interval lies below 0, else "not beyond doubt" and the comparative.
    """
    return less if high < 0 else f"not beyond doubt {more}"


def beside(value: float, margin: float, digits: int = 2) -> str:
    """A number in as few decimals as show on which side of a margin it lies.

    Args:
        value: The number.
        margin: What it is held against.
        digits: Decimals at least.

    Returns:
        The number with up to three decimals more.
    """
    texts = [f"{value:.{more}f}" for more in range(digits, digits + 4)]
    told = [text for text in texts if np.sign(float(text) - margin) == np.sign(value - margin)]
    return (told or texts)[0]


def as_much(control: Interval, contrast: Interval) -> str:
    """Whether a control shows an effect as much as the model does.

    Args:
        control: The control's effect.
        contrast: The model's effect minus it.

    Returns:
        ``"no"`` where the control has none, or less than the model beyond doubt; ``"yes"`` where it
        has one beyond doubt; else ``"unclear"``.
    """
    if contrast.lo > 0 or control.hi <= 0:
        return "no"
    return "yes" if control.lo > 0 else "unclear"


@dataclass(frozen=True)
class Resampled:
    """Means over images of several columns, and the same in every resample of the images.

    Attributes:
        means: Column -> mean.
        draws: Column -> (B,), all columns under the same resamples.
        level: Of the bounds.
    """

    means: dict[str, float]
    draws: dict[str, Floats]
    level: float

    @classmethod
    def of(cls, per_image: pd.DataFrame, common: dict[str, Any]) -> Resampled:
        """Resample the rows of a table (images x columns); gaps are left out column by column."""
        found = cluster_bootstrap(
            per_image.to_numpy(float),
            per_image.index,
            B=common["resamples"],
            seed=common["seed"],
        )
        names = list(per_image.columns)
        # numpy numbers: 0 / 0 is NaN for them as for the draws, not an error
        means = {name: np.float64(found.estimate[i]) for i, name in enumerate(names)}
        draws = {name: found.distribution[:, i] for i, name in enumerate(names)}
        return cls(means, draws, common["level"])

    def bounded(self, function: Callable[[dict[str, Any]], Any]) -> Interval:
        """Bounds of a function of the means; it gets a dictionary of numbers or of (B,) arrays."""
        with np.errstate(invalid="ignore", divide="ignore"):
            value, draws = float(function(self.means)), np.asarray(function(self.draws), float)
        tails = [(1 - self.level) / 2, (1 + self.level) / 2, 1 - self.level, self.level]
        if not np.isfinite(draws).all():  # a resample without an answer: no bound is honest
            return Interval(value, *[float("nan")] * 4)
        return Interval(value, *(float(q) for q in np.quantile(draws, tails)))


@once
def by_image_and(rows: pd.DataFrame, columns: list[str], value: str) -> pd.DataFrame:
    """Mean of ``value`` as (images x columns); a missing value of any row leaves a gap.

    Args:
        rows: Tidy table with ``image``, the columns and the value.
        columns: What becomes the columns, e.g. ``["source_layer", "layer"]``.
        value: Which numbers.

    Returns:
        The matrix, images in order of appearance.
    """
    cells = rows.assign(**{value: rows[value].astype(float)}).groupby(
        ["image", *columns], sort=False
    )[value]
    means = cells.mean().where(cells.count() == cells.size())
    return means.unstack(columns).reindex(rows["image"].unique()).sort_index(axis=1)


def require(table: pd.DataFrame, columns: set[str], name: str, source: str) -> None:
    """Refuse a table that lacks a column, by name."""
    if missing := columns - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(f"{name} lacks column(s) {names}: pass what {source} returns")


def rule_variants(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same claim under the other settings that ``sensitivity.rules`` names.

    Args:
        spec: Entry of claims.yaml.

    Returns:
        Name of the variant -> changed entry.
    """
    return {
        name: copy.deepcopy(spec) | change for name, change in spec["sensitivity"]["rules"].items()
    }


def rule_thresholds(spec: dict[str, Any], depth: int, *own: str) -> dict[str, Any]:
    """The numbers a rule uses on a decoder of ``depth`` layers, for the record.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        depth: L.
        *own: Settings of this claim.

    Returns:
        Those settings, the layers, all margins and the common settings.
    """
    names = ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share")
    return {
        **{name: spec[name] for name in own},
        "layers": depth,
        **{f"margin_{name}": margin["value"] for name, margin in spec["margins"].items()},
        **{name: spec["common"][name] for name in names},
    }


def said(verdict: str, reason: str) -> dict[str, str]:
    """The two fields that end a rule."""
    return {"verdict": verdict, "reason": reason}
