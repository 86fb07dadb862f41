"""Intrinsic dimension of token sets, estimated from their Gram matrices.

Duplicates are removed first: they break every such estimator, mostly silently. The closed forms
equal scikit-dimension's estimates (tested to 1e-9) and serve many subsets at once. Compare values
at matched N and scale; never interpret one alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from visdepth_utils.measure.geometry.gram import DTYPE_TOL, Gram, check_option, host

MAX_DIMENSION = 1e5  # larger means that neighbours are equally far: ratios are pure rounding


@dataclass(frozen=True)
class Neighbours:
    """Sorted distances (..., N, k) to kept tokens, inf if fewer; rows without ``keep`` are void."""

    distances: torch.Tensor
    keep: torch.Tensor
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
    return Neighbours(distances, keep, finite)


def _estimate(value: torch.Tensor, nb: Neighbours, needed: int) -> tuple[np.ndarray, str]:
    """Blank what cannot be trusted and give the first reason."""
    columns = (value, nb.keep.sum(-1), nb.finite)
    value, distinct, finite = host(torch.stack([column.double() for column in columns]))
    usable = (finite > 0) & (distinct >= needed) & (np.abs(value) < MAX_DIMENSION)
    value = np.where(usable, value, np.nan)
    if not finite.all():
        return value, "non-finite values in states"
    if (distinct < needed).any():
        n = nb.keep.shape[-1]
        return value, f"{distinct.min():.0f} distinct tokens of {n}, at least {needed} needed"
    return value, "" if usable.all() else "neighbours at equal distances"


def twonn_from_gram(
    G: Gram | Neighbours,
    *,
    method: str = "mle",
    discard_fraction: float = 0.1,
    dtype_tol: float = DTYPE_TOL,
    n_min: int = 32,
) -> tuple[np.ndarray, str]:
    """TwoNN (Facco et al. 2017) of one Gram or of R subsets: values and the first reason for a NaN.

    "mle": (k - 1) / (sum_{i<=k} log mu_i + (N - k) log mu_k), mu = r2 / r1 sorted, k kept after
    ``discard_fraction`` of the largest (0 gives DADApy's "ml"). "linear": slope through the
    origin of -log(1 - i/N) on log mu.
    """
    check_option(method, ("mle", "linear"), "method")
    if not (0 < discard_fraction < 1 or (discard_fraction == 0 and method == "mle")):
        raise ValueError(f"discard_fraction {discard_fraction} is not possible with {method!r}")
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
) -> tuple[np.ndarray, str]:
    """Levina-Bickel MLE of one Gram or of R subsets: values and the first reason for a NaN.

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
