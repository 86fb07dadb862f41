"""Geometry of one token set: curvature, update ratio, debiased CKA, attention sinks.

Everything is computed in float64. Data that carry no answer (NaN, one token, no spread) give NaN.
"""

from typing import Any

import numpy as np
import torch
from torch.linalg import vector_norm as norm

from visdepth_utils.measure.geometry.gram import DTYPE_TOL, as_tensor, trace


def angle(u: torch.Tensor, v: torch.Tensor, floor: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Angles (...,) in radians in [0, pi] between vectors (..., D).

    2 atan2(|a - b|, |a + b|) of the unit vectors: exact near 0 and pi, unlike arccos. NaN where a
    vector is no longer than ``floor`` or not finite. Between the updates v_{l-1} and v_l of a token
    this is the curvature over depth.
    """
    nu, nv = norm(u, dim=-1), norm(v, dim=-1)
    a, b = u / nu[..., None], v / nv[..., None]
    theta = 2 * torch.atan2(norm(a - b, dim=-1), norm(a + b, dim=-1))
    good = (torch.minimum(nu, nv) > floor) & (nu + nv).isfinite()
    return torch.where(good, theta, torch.nan)


def ratio(v: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """|v| / |h| (...,) of updates v and the states h (..., D) they are added to; else NaN."""
    quotient = norm(v, dim=-1) / norm(h, dim=-1)
    return torch.where(quotient.isfinite(), quotient, torch.nan)


TOO_FEW = "{} tokens, CKA needs at least 4"


def unit_trace(K: torch.Tensor, square_norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide centred products (..., N, N) by their traces, in place: no overflow afterwards.

    The second result (...,) is the excess of the spread over what rounding makes; NaN for states
    that are not finite.
    """
    spread = trace(K)
    K /= spread[..., None, None]
    # All products are finite if their trace is, by Cauchy and Schwarz.
    excess = spread - DTYPE_TOL**2 * square_norms.sum(-1)
    return K, torch.where(spread.isfinite(), excess, torch.nan)


def hsic(K: torch.Tensor, L: torch.Tensor, debiased: bool) -> torch.Tensor:
    """HSIC_1 (...,), or HSIC_0, of centred products (..., N, N) of trace one.

    HSIC_1 (Song et al. 2012) = [tr(KL) + sum(K) sum(L) / ((n-1)(n-2)) - 2 / (n-2) sum(KL)] /
    (n (n-3)), K and L with zero diagonal; rows of centred products sum to 0, so that without their
    diagonal they sum to minus it. CKA = HSIC(K,L) / sqrt(HSIC(K,K) HSIC(L,L)): independent sets
    give about 0 (and may go below), where plain CKA (HSIC_0) gives .98 at N=64, D=4096.
    """
    n = K.shape[-1]
    product = (K.flatten(-2)[..., None, :] @ L.flatten(-2)[..., :, None])[..., 0, 0]
    if not debiased:
        return product
    diagonals = (K.diagonal(dim1=-2, dim2=-1) * L.diagonal(dim1=-2, dim2=-1)).sum(-1)
    sums = 1 / ((n - 1) * (n - 2))
    return (product - diagonals + sums - 2 * diagonals / (n - 2)) / (n * (n - 3))


def cka_of(
    n: int, cross: float, own: float, other: float, excess: float, excess_too: float
) -> tuple[float, str]:
    """CKA and "", or NaN and why, from HSIC(K,L), HSIC(K,K), HSIC(L,L) and both excesses."""
    if np.isnan(excess + excess_too):
        return float("nan"), "non-finite values in states"
    if not min(excess, excess_too) > 0:
        return float("nan"), "no spread between tokens"
    if min(own, other) <= (1e-6 / n) ** 2:  # e.g. all tokens equally far from each other
        return float("nan"), "self-similarity is not positive"
    return float(cross / np.sqrt(own * other)), ""


def sink_mask(norms: Any, *, factor: float = 10.0) -> np.ndarray:
    """Tokens to leave out at every layer, bool (N,), from their norms (L+1, N).

    A sink's norm exceeds ``factor`` medians at ANY layer: one mask for all layers keeps N constant
    over depth. A token without finite norms is no sink: it stays, and the measures report it.
    """
    norms = as_tensor(norms).cpu().numpy()
    if norms.ndim != 2 or not norms.size:
        raise ValueError(f"norms must have shape (layers, tokens), got {norms.shape}")
    usable = np.where(np.isfinite(norms), norms, 0.0)
    median = np.median(usable, axis=1, keepdims=True)
    return ((usable > factor * median) & (median > 0)).any(axis=0)
