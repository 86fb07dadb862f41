"""Intrinsic dimension of token sets, estimated from their Gram matrices.

Duplicates are removed first: they break every such estimator, mostly silently. Single estimates
come from scikit-dimension; the batched closed forms equal it (tested to 1e-9). Compare values at
matched N and scale; never interpret one alone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visdepth_utils.measure.geometry.gram import (
    DTYPE_TOL,
    Gram,
    as_states,
    check_option,
    gram,
    host,
)

MAX_DIMENSION = 1e5  # larger means that neighbours are equally far: ratios are pure rounding


@dataclass(frozen=True)
class Estimate:
    """Intrinsic dimension of one token set, or arrays (R,) over R subsets.

    Attributes:
        value: the estimate, or NaN.
        note: "" or the (first) reason for a NaN, or a warning of the estimator.
        n_eff: tokens left after duplicates are removed.
        dropped_fraction: share of tokens removed as duplicates.
        noise_ratio: median nearest distance over the rounding step of bf16 storage, rms|h| 2^-9;
            when small, an estimate from bf16 states measures the rounding.
    """

    value: Any
    note: str
    n_eff: Any
    dropped_fraction: Any
    noise_ratio: Any


@dataclass(frozen=True)
class Neighbours:
    """Sorted distances (..., N, k) to kept tokens, inf if fewer; rows without ``keep`` are void."""

    distances: torch.Tensor
    keep: torch.Tensor
    noise_ratio: torch.Tensor
    finite: torch.Tensor

    def __getitem__(self, index: int) -> Neighbours:
        """One of many, by the first axis."""
        return Neighbours(*(field[index] for field in vars(self).values()))


def neighbours(G: Gram, *, k: int = 20, dtype_tol: float = DTYPE_TOL) -> Neighbours:
    """Distances to the k nearest distinct tokens, for one Gram or R subsets.

    Tokens i < j are duplicates when d_ij^2 <= dtype_tol^2 (s_i + s_j), s = squared norm after
    centring; j is dropped. Use 1e-6 for fp32 states and 1e-3 or more for bf16.
    """
    K = G.recentred()
    finite = K.isfinite().flatten(-2).all(-1)
    s = K.diagonal(dim1=-2, dim2=-1)
    total = s[..., :, None] + s[..., None, :]
    d2 = (total - 2 * K).clamp(min=0)
    raw = G.square_norms.sum(-1)
    # A set that differs only by the rounding of its common offset is one point.
    flat = ~(s.sum(-1) > dtype_tol**2 * raw)
    repeats = (d2 <= dtype_tol**2 * total) | flat[..., None, None]
    keep = ~repeats.tril(-1).any(-1)
    n = keep.shape[-1]
    others = ~torch.eye(n, dtype=torch.bool, device=K.device)
    pairs = keep[..., :, None] & keep[..., None, :] & others
    d2 = torch.where(pairs, d2, torch.inf)
    distances = d2.topk(min(k, n), largest=False).values.sqrt()
    distances = torch.nn.functional.pad(distances, (0, k - distances.shape[-1]), value=torch.inf)
    usable = finite & (keep.sum(-1) > 1)
    nearest = torch.where(keep, distances[..., 0], torch.nan)
    median = torch.where(usable[..., None], nearest, 0.0).nanquantile(0.5, dim=-1)
    noise = torch.where(usable, median / ((raw / n).sqrt() * 2.0**-9), torch.nan)
    return Neighbours(distances, keep, noise, finite)


def _estimate(value: torch.Tensor, nb: Neighbours, needed: int, note: str = "") -> Estimate:
    """Blank what cannot be trusted and say why."""
    n = nb.keep.shape[-1]
    columns = (value, nb.keep.sum(-1), nb.finite, nb.noise_ratio)
    value, n_eff, finite, noise = host(torch.stack([column.double() for column in columns]))
    n_eff, finite = n_eff.astype(int), finite.astype(bool)
    usable = finite & (n_eff >= needed)
    value = np.where(usable & (np.abs(value) < MAX_DIMENSION), value, np.nan)
    if not finite.all():
        note = "non-finite values in states"
    elif (n_eff < needed).any():
        note = f"{n_eff.min()} distinct tokens of {n}, at least {needed} needed"
    elif np.isnan(value).any():
        note = "neighbours at equal distances"
    n_eff = np.where(finite, n_eff, 0)
    return Estimate(value, note, n_eff, 1.0 - n_eff / n, noise)


def _check_twonn(method: str, discard_fraction: float) -> None:
    check_option(method, ("mle", "linear"), "method")
    if not (0 < discard_fraction < 1 or (discard_fraction == 0 and method == "mle")):
        raise ValueError(f"discard_fraction {discard_fraction} is not possible with {method!r}")


def twonn_from_gram(
    G: Gram | Neighbours,
    *,
    method: str = "mle",
    discard_fraction: float = 0.1,
    dtype_tol: float = DTYPE_TOL,
    n_min: int = 32,
) -> Estimate:
    """TwoNN (Facco et al. 2017) of one Gram or of R subsets at once; equals scikit-dimension.

    "mle": (k - 1) / (sum_{i<=k} log mu_i + (N - k) log mu_k), mu = r2 / r1 sorted, k kept after
    ``discard_fraction`` of the largest (0 gives DADApy's "ml"). "linear": slope through the
    origin of -log(1 - i/N) on log mu.
    """
    _check_twonn(method, discard_fraction)
    nb = G if isinstance(G, Neighbours) else neighbours(G, k=2, dtype_tol=dtype_tol)
    n = nb.keep.sum(-1, keepdim=True).double()
    log_mu = (nb.distances[..., 1] / nb.distances[..., 0]).log()
    x = torch.where(nb.keep, log_mu, torch.inf).sort(-1).values
    k = (n * (1 - discard_fraction)).floor()
    rank = torch.arange(1, x.shape[-1] + 1, device=x.device)
    x = torch.where(rank <= k, x, 0.0)
    if method == "mle":
        value = (k[..., 0] - 1) / (x.sum(-1) + (n - k)[..., 0] * x.amax(-1))
    else:
        y = torch.where(rank <= k, -(1 - rank / n).log(), 0.0)
        value = (x * y).sum(-1) / (x * x).sum(-1)
    return _estimate(value, nb, max(n_min, 3))


def mle_from_gram(
    G: Gram | Neighbours,
    *,
    k: int = 20,
    comb: str = "mle",
    dtype_tol: float = DTYPE_TOL,
    n_min: int = 32,
) -> Estimate:
    """Levina-Bickel MLE of one Gram or of R subsets at once; equals scikit-dimension.

    Inverse dimension at a point = mean over its k - 1 nearer neighbours of log(r_k / r_j);
    ``comb`` "mle" averages the inverses (MacKay and Ghahramani), "mean" the values.
    """
    check_option(comb, ("mle", "mean"), "comb")
    nb = G if isinstance(G, Neighbours) else neighbours(G, k=k, dtype_tol=dtype_tol)
    r = nb.distances[..., :k]
    if r.shape[-1] < k or k < 2:
        raise ValueError(f"k={k} neighbours asked of a table of {nb.distances.shape[-1]}")
    n_eff = nb.keep.sum(-1)
    inverse = (r[..., -1:] / r).log().sum(-1) / (k - 1)
    if comb == "mle":
        value = n_eff / torch.where(nb.keep, inverse, 0.0).sum(-1)
    else:
        value = torch.where(nb.keep, 1.0 / inverse, 0.0).sum(-1) / n_eff
    return _estimate(value, nb, max(n_min, k + 1))


def intrinsic_dimension(
    H: Any,
    *,
    estimator: str = "twonn",
    dtype_tol: float = DTYPE_TOL,
    n_min: int = 32,
    method: str = "mle",
    discard_fraction: float = 0.1,
    k: int = 20,
    n1: int = 1,
) -> Estimate:
    """Intrinsic dimension of one token set by scikit-dimension, after removing duplicates.

    Args:
        H: states (N, D), or their ``Gram``.
        estimator: "twonn"; "mle" (Levina-Bickel, less variance, biased low above d = 5);
            "gride" (neighbours n1 and 2 n1; larger n1 looks at a larger scale).
        dtype_tol: see ``neighbours``.
        n_min: fewest distinct tokens for an answer.
        method: TwoNN only, like ``discard_fraction``: see ``twonn_from_gram``.
        discard_fraction: see ``method``.
        k: MLE only, number of neighbours.
        n1: GRIDE only.

    Returns:
        Estimate with float and int fields; value NaN and a note when there is no answer.
    """
    check_option(estimator, ("twonn", "mle", "gride"), "estimator")
    _check_twonn(method, discard_fraction)
    if k < 2 or n1 < 1:
        raise ValueError(f"k must be at least 2 and n1 at least 1, got k={k} and n1={n1}")
    G = H if isinstance(H, Gram) else gram(as_states(H))
    nb = neighbours(G, k=max(2, k if estimator == "mle" else 2), dtype_tol=dtype_tol)
    needed = max(n_min, {"twonn": 3, "mle": k + 1, "gride": 2 * n1 + 2}[estimator])
    value, note = np.nan, ""
    if nb.finite and nb.keep.sum() >= needed:
        import skdim  # two seconds: only when an estimate is really made

        r = host(nb.distances[nb.keep])
        with np.errstate(all="ignore"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if estimator == "twonn":
                    fit = skdim.id.TwoNN(discard_fraction, dist=True, method=method).fit(r)
                elif estimator == "mle":
                    fit = skdim.id.MLE().fit(r, precomputed_knn_arrays=(r, r), n_neighbors=k)
                else:  # points with the same distances, in as many dimensions as tokens
                    weights, vectors = np.linalg.eigh(host(G.recentred()[nb.keep][:, nb.keep]))
                    fit = skdim.id.GRIDE(n1=n1).fit(vectors * np.sqrt(weights.clip(0)))
                value = fit.dimension_
            except ValueError:  # GRIDE refuses ties; bad options were refused above
                value = np.inf
        note = "; ".join(str(w.message) for w in caught if w.category is UserWarning)
    e = _estimate(torch.full_like(nb.noise_ratio, value), nb, needed, note)
    return Estimate(*(x if isinstance(x, str) else x.item() for x in vars(e).values()))
