"""P values, effect sizes and corrections for many tests; the image is the unit.

Intervals come first (statistics.py). Equivalence is never concluded from a large p value: use
``statistics.equivalence`` or ``statistics.non_inferiority``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control


def _cluster_sums(values: np.ndarray, clusters: Sequence | None) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    codes = np.arange(len(values)) if clusters is None else pd.factorize(np.asarray(clusters))[0]
    known = np.isfinite(values)
    sums = np.bincount(codes[known], values[known], minlength=codes.max() + 1)
    counts = np.bincount(codes[known], minlength=codes.max() + 1)
    return np.stack([sums, counts])[:, counts > 0]


def sign_flip(
    difference: np.ndarray,
    clusters: Sequence | None = None,
    *,
    alternative: str = "two-sided",
    n_perm: int = 10_000,
    seed: int = 0,
) -> float:
    """P value of mean difference = 0 by flipping signs of whole clusters; exact up to 12."""
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative {alternative!r}: choose two-sided, greater or less")
    sums = _cluster_sums(difference, clusters)[0]
    sums = -sums if alternative == "less" else sums
    C = len(sums)
    if C == 0:
        return float("nan")
    if C <= 12:
        signs = 1.0 - 2.0 * (np.arange(2**C)[:, None] >> np.arange(C) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_perm, C))
        signs[0] = 1.0  # the observed signs are one of the permutations
    null, seen = signs @ sums, sums.sum()
    if alternative == "two-sided":
        null, seen = np.abs(null), abs(seen)
    return float((null >= seen - 1e-12 * np.abs(sums).sum()).mean())


def cohens_dz(difference: np.ndarray, clusters: Sequence | None = None) -> float:
    """Paired effect size: mean over sd of the per-image mean differences."""
    sums, counts = _cluster_sums(difference, clusters)
    means = sums / counts
    spread = means.std(ddof=1) if len(means) > 1 else 0.0
    return float(means.mean() / spread) if spread > 0 else float("nan")


def cliffs_delta(a: np.ndarray, b: np.ndarray) -> float:
    """P(a > b) - P(a < b) for ordinal values."""
    return float(np.sign(np.subtract.outer(np.asarray(a, float), np.asarray(b, float))).mean())


def mcnemar_exact(b: int, c: int) -> float:
    """Exact two-sided McNemar p value of b and c discordant pairs."""
    if b < 0 or c < 0:
        raise ValueError(f"counts of discordant pairs must not be negative, got {b} and {c}")
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def _p_values(p: Sequence[float]) -> np.ndarray:
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p values must be numbers in [0, 1], got {p.tolist()}")
    return p


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values, in the order given (family-wise error)."""
    p = _p_values(p)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    return np.minimum(stepped, 1.0)[np.argsort(order, kind="stable")]


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Benjamini-Hochberg adjusted p values, in the order given (false discovery rate)."""
    p = _p_values(p)
    return false_discovery_control(p) if len(p) else p
