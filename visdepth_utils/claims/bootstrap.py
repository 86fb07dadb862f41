"""Cluster bootstrap, tail ranges, and bands by layer: what the rules and figures are made of.

The unit of resampling is the image: all questions about it, and all layers, move together. A
table is (n_samples, n_layers) or (n_samples,), NaN where nothing was measured; ``clusters`` names
the image of each row. Equal clusters, B and seed give equal resamples, so that quantities
computed by separate calls are paired. With one image there is no interval: NaN, never zero width.
When a curve settles: rules/settling.py. P values over claims: multiplicity.py.
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
