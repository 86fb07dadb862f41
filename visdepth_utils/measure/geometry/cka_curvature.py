"""Geometry of one token set: curvature, update ratio, debiased CKA, attention sinks.

``H`` is always (N, D): the states of N tokens of one type at one layer of one sample. Everything
is computed in float64. Data that carry no answer (NaN, one token, no spread) give NaN with a
reason; a wrong shape or an unknown option is a ValueError. Matrix entropy: entropy.py;
intrinsic dimension: dimension.py; both are to be had from here as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.linalg import vector_norm as norm

from visdepth_utils.measure.geometry.dimension import (
    Estimate,
    intrinsic_dimension,
    mle_from_gram,
    neighbours,
    twonn_from_gram,
)
from visdepth_utils.measure.geometry.entropy import entropy_from_gram, matrix_entropy
from visdepth_utils.measure.geometry.gram import (
    DTYPE_TOL,
    Gram,
    as_states,
    as_tensor,
    check_option,
    draws,
    gram,
    host,
    inverse_norm,
    trace,
)

# fmt: off
__all__ = ["Estimate", "Gram", "curvature_sequence", "debiased_cka", "depth_curvature", "draws",
           "entropy_from_gram", "gram", "intrinsic_dimension", "matrix_entropy", "mle_from_gram",
           "neighbours", "sink_mask", "twonn_from_gram", "update_ratio"]
# fmt: on

SEQUENCE_VARIANTS = ("stable", "hosseini", "skean", "skean-2024")


def _alike(a: Any, b: Any, *names: str) -> list[torch.Tensor]:
    """Two sets of states, which must have one shape."""
    pair = [as_states(H, name) for H, name in zip((a, b), names, strict=True)]
    if pair[0].shape != pair[1].shape:
        shapes = " and ".join(str(tuple(H.shape)) for H in pair)
        raise ValueError(f"{' and '.join(names)} must have the same shape, got {shapes}")
    return pair


def angle(u: torch.Tensor, v: torch.Tensor, floor: torch.Tensor | float = 0.0) -> torch.Tensor:
    """2 atan2(|a - b|, |a + b|) of the unit vectors: exact near 0 and pi, unlike arccos."""
    nu, nv = norm(u, dim=-1), norm(v, dim=-1)
    a, b = u / nu[..., None], v / nv[..., None]
    theta = 2 * torch.atan2(norm(a - b, dim=-1), norm(a + b, dim=-1))
    good = (torch.minimum(nu, nv) > floor) & (nu + nv).isfinite()
    return torch.where(good, theta, torch.nan)


def ratio(v: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """|v| / |h| (...,) of (..., D), NaN where it is not finite."""
    found = norm(v, dim=-1) / norm(h, dim=-1)
    return torch.where(found.isfinite(), found, torch.nan)


def depth_curvature(
    v_prev: Any, v: Any, state_norm: Any = None, *, tiny: float = 1e-12
) -> np.ndarray:
    """Angle between successive updates of each token, kappa_l = angle(v_l, v_{l-1}).

    Args:
        v_prev: updates h_l - h_{l-1}, (N, D).
        v: updates h_{l+1} - h_l, (N, D).
        state_norm: |h_l|, (N,); an update no longer than ``tiny`` of it counts as none at all.
        tiny: see ``state_norm``.

    Returns:
        Angles (N,) in radians in [0, pi]; NaN where an update is zero or not finite.
    """
    u, w = _alike(v_prev, v, "v_prev", "v")
    floor = 0.0 if state_norm is None else tiny * as_tensor(state_norm)
    return host(angle(u, w, floor))


def curvature_sequence(H: Any, *, variant: str = "stable") -> np.ndarray:
    """Turning angles along the token order of one layer: a different quantity, not over depth.

    Args:
        H: states (N, D) in token order.
        variant: "stable" (atan2, NaN at a repeated token); "hosseini" (arccos without clipping,
            pi/2 at a repeated token); "skean" (|dot|, folded to [0, pi/2], 0 at a repeated token);
            "skean-2024" (between centred unit token vectors themselves, not their differences).

    Returns:
        Angles (N-2,) in radians, (N-1,) for "skean-2024"; empty when there are too few tokens.
    """
    check_option(variant, SEQUENCE_VARIANTS, "variant")
    X = as_states(H)
    if variant.startswith("skean"):
        X = X - X.mean(0)
        X = X * inverse_norm(X.square().sum(1), 0.0)[:, None]
    steps = X if variant == "skean-2024" else X.diff(dim=0)
    u, v = steps[:-1], steps[1:]
    if variant in ("stable", "skean-2024"):
        return host(angle(u, v))
    product = norm(u, dim=1) * norm(v, dim=1)
    cosine = (u * v).sum(1) / product
    if variant == "hosseini":
        return host(torch.where(product == 0, np.pi / 2, cosine.arccos()))
    return host(torch.where(product == 0, 0.0, cosine.abs().clamp(0.0, 1.0).arccos()))


def update_ratio(v: Any, h: Any) -> np.ndarray:
    """|v| / |h| per token, (N,); v = update, h = state it is added to; NaN where h is zero."""
    return host(ratio(*_alike(v, h, "v", "h")))


def debiased_cka(X: Any, Y: Any, *, debiased: bool = True) -> tuple[float, str]:
    """Linear CKA of two states of the same N >= 4 tokens, by the unbiased HSIC_1.

    HSIC_1 (Song et al. 2012) = [tr(KL) + sum(K) sum(L) / ((n-1)(n-2)) - 2 / (n-2) sum(KL)] /
    (n (n-3)), K and L with zero diagonal; CKA = HSIC(K,L) / sqrt(HSIC(K,K) HSIC(L,L)). Independent
    sets give about 0 (and may go below), where plain CKA gives .98 at N=64, D=4096.

    Args:
        X: states (N, D1), or a ``Gram``.
        Y: states (N, D2), or a ``Gram``; rows are the same tokens in the same order.
        debiased: False gives plain linear CKA, for comparison with published numbers.

    Returns:
        Value and "", or NaN and the reason.
    """
    pair = [
        G if isinstance(G, Gram) else gram(as_states(G, name)) for G, name in ((X, "X"), (Y, "Y"))
    ]
    n, m = (G.values.shape[-1] for G in pair)
    if n != m:
        raise ValueError(f"X has {n} tokens and Y has {m}: CKA needs the same tokens in both")
    if n < 4:
        return float("nan"), TOO_FEW.format(n)
    (K, excess), (L, other) = (unit_trace(G.recentred(), G.square_norms) for G in pair)
    found = (hsic(K, L, debiased), hsic(K, K, debiased), hsic(L, L, debiased), excess, other)
    return cka_of(n, *host(torch.stack(found)))


TOO_FEW = "{} tokens, CKA needs at least 4"


def unit_trace(K: torch.Tensor, square_norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide centred products (..., N, N) by their traces, in place.

    Returns:
        The products, scale-free and far from overflow; and by how much the spread exceeds what
        rounding makes, (...,): NaN for states that are not finite.
    """
    spread = trace(K)
    K /= spread[..., None, None]
    # All products are finite if their trace is, by Cauchy and Schwarz.
    excess = spread - DTYPE_TOL**2 * square_norms.sum(-1)
    return K, torch.where(spread.isfinite(), excess, torch.nan)


def hsic(K: torch.Tensor, L: torch.Tensor, debiased: bool) -> torch.Tensor:
    """HSIC_1 (...,), or HSIC_0, of centred products (..., N, N) of trace one.

    Rows of centred products sum to 0, so that without their diagonal they sum to minus it.
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
    """CKA of N tokens from HSIC(K,L), HSIC(K,K), HSIC(L,L) and what ``unit_trace`` said of both."""
    if np.isnan(excess + excess_too):
        return float("nan"), "non-finite values in states"
    if not min(excess, excess_too) > 0:
        return float("nan"), "no spread between tokens"
    if min(own, other) <= (1e-6 / n) ** 2:  # e.g. all tokens equally far from each other
        return float("nan"), "self-similarity is not positive"
    return float(cross / np.sqrt(own * other)), ""


def sink_mask(norms: Any, *, factor: float = 10.0) -> np.ndarray:
    """Tokens to leave out at every layer: norm above ``factor`` medians at ANY layer.

    Args:
        norms: (L+1, N), |h_l| of the tokens of one type in one sample, one row per state.
        factor: multiple of the median norm of that state.

    Returns:
        (N,) bool, True = sink. One mask for all layers keeps N constant over depth. A token
        without finite norms is no sink: it stays, and the measures report it.
    """
    norms = host(as_states(norms, "norms"))
    usable = np.where(np.isfinite(norms), norms, 0.0)
    median = np.median(usable, axis=1, keepdims=True)
    return ((usable > factor * median) & (median > 0)).any(axis=0)
