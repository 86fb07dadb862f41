"""Claims as statistics: cluster bootstrap, stabilisation layer, contrasts, bands by layer.

The unit of resampling is the image: all questions about it, and all layers, move together. A
table is (n_samples, n_layers) or (n_samples,), NaN where nothing was measured; ``clusters`` names
the image of each row. Equal clusters, B and seed give equal resamples, so that quantities
computed by separate calls are paired. With one image there is no interval: NaN, never zero width.
P values and their corrections: significance.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

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


@dataclass(frozen=True)
class Stabilisation:
    """Where a curve over depth has stopped changing; see ``stabilisation_layer``.

    Attributes:
        l_star: first layer from which all change is within delta (95% upper bound), or None.
        z_star: l_star as a fraction of the last layer.
        l_star_half: the same for delta / 2.
        l_star_double: the same for 2 delta.
        changed: whether the curve changes by more than delta at all (lower bound of tr0).
        tr0: tail range of the whole curve, with its 95% interval (tr0_lo, tr0_hi).
        tail_range: (L,) TR(l) of the mean curve; ``tail_upper`` is its 95% upper bound.
        z_plugin: depth from the mean curve alone, without the bound.
        z_distribution: (B,) the same in every resample, for paired contrasts.
    """

    l_star: int | None
    z_star: float
    l_star_half: int | None
    l_star_double: int | None
    changed: bool
    tr0: float
    tr0_lo: float
    tr0_hi: float
    tail_range: np.ndarray
    tail_upper: np.ndarray
    z_plugin: float
    z_distribution: np.ndarray
    delta: float
    n_clusters: int


def resample_weights(
    clusters: Sequence | np.ndarray, B: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster number of each row (n,), and how often each resample holds each cluster (B, C)."""
    codes, names = pd.factorize(np.asarray(clusters))  # in order of appearance
    if (codes < 0).any() or len(codes) == 0:
        raise ValueError("clusters must name an image for every row: a name is missing")
    C = len(names)
    chosen = np.random.default_rng(seed).integers(0, C, size=(B, C))
    flat = (chosen + C * np.arange(B)[:, None]).ravel()
    return codes, np.bincount(flat, minlength=B * C).reshape(B, C).astype(np.float64)


def resample_means(table: np.ndarray, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over rows of (n, ...) in every resample, (B, ...); NaN cells are left out."""
    table = np.asarray(table, dtype=np.float64)
    flat = table.reshape(len(table), -1)
    known = np.isfinite(flat)
    shape = (weights.shape[1], flat.shape[1])
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, codes, np.where(known, flat, 0.0))
    np.add.at(counts, codes, known.astype(np.float64))
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
    interval: str = "percentile",
) -> Bootstrap:
    """Interval of a function of means, resampling whole clusters.

    Args:
        tables: array (n, ...), or a tuple of arrays whose rows are the same samples.
        clusters: (n,) image of each row.
        statistic: takes one array (..., k) of means per table and works on the last axis;
            None is the mean itself.
        B: resamples.
        seed: equal seeds give equal resamples.
        level: of the two-sided interval.
        interval: "percentile" covers about 90% at 95% nominal for 15-60 clusters. "hull" also
            spans its mirror image about the estimate: for ranges (max - min), which noise can
            only enlarge, so that the percentile interval may even miss its own estimate.
    """
    if interval not in ("percentile", "hull"):
        raise ValueError(f"unknown interval {interval!r}: choose 'percentile' or 'hull'")
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
    if interval == "hull":
        lo, hi = np.minimum(lo, 2 * estimate - hi), np.maximum(hi, 2 * estimate - lo)
    return Bootstrap(estimate, lo, hi, distribution, C, len(codes))


def paired_contrast(
    a: np.ndarray, b: np.ndarray, clusters: Sequence, statistic: Statistic | None = None, **options
) -> Bootstrap:
    """statistic(a) - statistic(b) under the same resamples, e.g. text minus image depth."""
    f = statistic or (lambda means: means)
    return cluster_bootstrap((a, b), clusters, lambda x, y: f(x) - f(y), **options)


def tail_range(curve: np.ndarray) -> np.ndarray:
    """TR(l) = max - min of the curve from l to the end, (..., L); NaN at unmeasured layers."""
    curve = np.asarray(curve, dtype=np.float64)
    tail = curve[..., ::-1]
    span = np.fmax.accumulate(tail, axis=-1) - np.fmin.accumulate(tail, axis=-1)
    return np.where(np.isnan(curve), np.nan, span[..., ::-1])


def stabilisation_depth(
    curve: np.ndarray, delta: float, layers: Sequence[int] | None = None
) -> np.ndarray:
    """First layer with TR(l) <= delta over the last layer, (...,); NaN where there is none."""
    stable = tail_range(curve) <= delta
    layers = np.arange(stable.shape[-1]) if layers is None else np.asarray(layers)
    return np.where(stable.any(-1), layers[stable.argmax(-1)] / max(layers[-1], 1), np.nan)


def stabilisation_layer(
    table: np.ndarray,
    clusters: Sequence,
    delta: float,
    *,
    layers: Sequence[int] | None = None,
    B: int = 2000,
    seed: int = 0,
) -> Stabilisation:
    """l* = first layer whose tail range has a 95% bootstrap upper bound within delta.

    Args:
        table: (n_samples, L), columns in order of depth.
        clusters: (n_samples,) image of each row.
        delta: equivalence margin in the units of the table.
        layers: (L,) layer number of each column; 0..L-1 when None.
        B: resamples.
        seed: equal seeds give equal resamples.
    """
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or not delta > 0:
        raise ValueError(f"need (samples, layers) and delta > 0, got {table.shape} and {delta}")
    layers = np.arange(table.shape[1]) if layers is None else np.asarray(layers)
    if len(layers) != table.shape[1]:
        raise ValueError(f"layers names {len(layers)} of {table.shape[1]} columns")
    means = cluster_bootstrap(table, clusters, B=B, seed=seed)
    tr, resampled = tail_range(means.estimate), tail_range(means.distribution)
    upper = _quantile(resampled, 0.95)
    first = int(np.argmax(np.isfinite(tr)))  # TR(0), or of the first layer that was measured
    q_lo, q_hi = _quantile(resampled[:, first], [0.025, 0.975])  # then "hull", as above
    lo, hi = max(min(q_lo, 2 * tr[first] - q_hi), 0.0), max(q_hi, 2 * tr[first] - q_lo)

    def reached(margin: float) -> int | None:
        stable = np.flatnonzero(upper <= margin)
        return int(layers[stable[0]]) if len(stable) else None

    l_star = reached(delta)
    z_star = np.nan if l_star is None else l_star / max(int(layers[-1]), 1)
    z_plugin = float(stabilisation_depth(means.estimate, delta, layers))
    z_all = stabilisation_depth(means.distribution, delta, layers)
    bounds = (l_star, z_star, reached(delta / 2), reached(2 * delta), bool(lo > delta))
    total = (float(tr[first]), float(lo), float(hi), tr, upper)
    return Stabilisation(*bounds, *total, z_plugin, z_all, delta, means.n_clusters)


def share_of_change(curve: np.ndarray, at: float = 1 / 3) -> np.ndarray:
    """1 - TR(l) / TR(0), l = last column within the first ``at`` of depth; (...,).

    1 = all change is over by then, 0 = none is; NaN for a curve that never changes.
    """
    tr = tail_range(curve)
    l_at = int(np.floor((tr.shape[-1] - 1) * at + 1e-9))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(tr[..., 0] > 0, 1 - tr[..., l_at] / tr[..., 0], np.nan)


def early_share(table: np.ndarray, clusters: Sequence, at: float = 1 / 3, **options) -> Bootstrap:
    """``share_of_change`` of the mean curve with its "hull" cluster bootstrap interval."""
    options = {"interval": "hull", **options}
    return cluster_bootstrap(table, clusters, lambda means: share_of_change(means, at), **options)


def non_inferiority(
    loss: np.ndarray, clusters: Sequence, margin: float, *, alpha: float = 0.05, **options
) -> tuple[Bootstrap, bool]:
    """Whether the one-sided (1 - alpha) upper bound of the mean loss is below ``margin``."""
    found = cluster_bootstrap(loss, clusters, level=1 - 2 * alpha, **options)
    return found, bool(found.hi < margin)


def equivalence(
    difference: np.ndarray, clusters: Sequence, margin: float, *, alpha: float = 0.05, **options
) -> tuple[Bootstrap, bool]:
    """Two one-sided tests: whether the (1 - 2 alpha) interval lies within +-``margin``."""
    found = cluster_bootstrap(difference, clusters, level=1 - 2 * alpha, **options)
    return found, bool(-margin < found.lo and found.hi < margin)


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
