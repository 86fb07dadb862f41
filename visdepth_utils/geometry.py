"""Geometry of one token set: curvature, update ratio, debiased CKA, attention sinks.

``H`` is always (N, D): the states of N tokens of one type at one layer of one sample. Everything
is computed in float64. Data that carry no answer (NaN, one token, no spread) give NaN with a
reason; a wrong shape or an unknown option is a ValueError. Matrix entropy: entropy.py;
intrinsic dimension: dimension.py; both are to be had from here as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from visdepth_utils.dimension import (
    DTYPE_TOL,
    Estimate,
    intrinsic_dimension,
    mle_from_gram,
    neighbours,
    twonn_from_gram,
)
from visdepth_utils.entropy import entropy_from_gram, matrix_entropy
from visdepth_utils.grams import Gram, as_states, check_option, draws, gram, inverse_norm

# fmt: off
__all__ = ["Estimate", "Gram", "curvature_sequence", "debiased_cka", "depth_curvature", "draws",
           "entropy_from_gram", "gram", "intrinsic_dimension", "matrix_entropy", "mle_from_gram",
           "neighbours", "sink_mask", "twonn_from_gram", "update_ratio"]
# fmt: on

SEQUENCE_VARIANTS = ("stable", "hosseini", "skean", "skean-2024")


def _angle(u: np.ndarray, v: np.ndarray, floor: Any = 0.0) -> np.ndarray:
    """2 atan2(|a - b|, |a + b|) of the unit vectors: exact near 0 and pi, unlike arccos."""
    with np.errstate(all="ignore"):
        nu, nv = np.linalg.norm(u, axis=-1), np.linalg.norm(v, axis=-1)
        a, b = u / nu[..., None], v / nv[..., None]
        theta = 2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))
    return np.where((np.minimum(nu, nv) > floor) & np.isfinite(nu + nv), theta, np.nan)


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
    u, w = as_states(v_prev, "v_prev"), as_states(v, "v")
    if u.shape != w.shape:
        raise ValueError(f"v_prev and v must have the same shape, got {u.shape} and {w.shape}")
    floor = 0.0 if state_norm is None else tiny * np.asarray(state_norm, dtype=np.float64)
    return _angle(u, w, floor)


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
        X = X - X.mean(axis=0)
        X = X * inverse_norm((X * X).sum(axis=1), np.float64(0.0))[:, None]
    steps = X if variant == "skean-2024" else np.diff(X, axis=0)
    u, v = steps[:-1], steps[1:]
    if variant in ("stable", "skean-2024"):
        return _angle(u, v)
    with np.errstate(all="ignore"):
        product = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        cosine = (u * v).sum(axis=1) / product
        if variant == "hosseini":
            return np.where(product == 0, np.pi / 2, np.arccos(cosine))
        return np.where(product == 0, 0.0, np.arccos(np.clip(np.abs(cosine), 0.0, 1.0)))


def update_ratio(v: Any, h: Any) -> np.ndarray:
    """|v| / |h| per token, (N,); v = update, h = state it is added to; NaN where h is zero."""
    v, h = as_states(v, "v"), as_states(h, "h")
    if v.shape != h.shape:
        raise ValueError(f"v and h must have the same shape, got {v.shape} and {h.shape}")
    with np.errstate(all="ignore"):
        ratio = np.linalg.norm(v, axis=1) / np.linalg.norm(h, axis=1)
        return np.where(np.isfinite(ratio), ratio, np.nan)


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
    pair = [G if isinstance(G, Gram) else gram(G) for G in (X, Y)]
    n, m = (G.values.shape[-1] for G in pair)
    if n != m:
        raise ValueError(f"X has {n} tokens and Y has {m}: CKA needs the same tokens in both")
    if n < 4:
        return float("nan"), f"{n} tokens, CKA needs at least 4"
    with np.errstate(all="ignore"):
        K, L = (G.recentred() for G in pair)
        if not (np.isfinite(K).all() and np.isfinite(L).all()):
            return float("nan"), "non-finite values in states"
        for G, C in zip(pair, (K, L), strict=True):
            if not np.trace(C) > DTYPE_TOL**2 * G.square_norms.sum():
                return float("nan"), "no spread between tokens"
        K, L = K / np.trace(K), L / np.trace(L)  # scale-free, and far from overflow
        product = _hsic1 if debiased else _hsic0
        self_similarity = min(product(K, K), product(L, L))
        if self_similarity <= (1e-6 / n) ** 2:  # e.g. all tokens equally far from each other
            return float("nan"), "self-similarity is not positive"
        return float(product(K, L) / np.sqrt(product(K, K) * product(L, L))), ""


def _hsic1(K: np.ndarray, L: np.ndarray) -> float:
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    cross = K.sum(axis=0) @ L.sum(axis=0)
    sums = K.sum() * L.sum() / ((n - 1) * (n - 2))
    return float(((K * L).sum() + sums - 2 * cross / (n - 2)) / (n * (n - 3)))


def _hsic0(K: np.ndarray, L: np.ndarray) -> float:
    return float((K * L).sum())


def sink_mask(norms: Any, *, factor: float = 10.0) -> np.ndarray:
    """Tokens to leave out at every layer: norm above ``factor`` medians at ANY layer.

    Args:
        norms: (L+1, N), |h_l| of the tokens of one type in one sample, one row per state.
        factor: multiple of the median norm of that state.

    Returns:
        (N,) bool, True = sink. One mask for all layers keeps N constant over depth. A token
        without finite norms is no sink: it stays, and the measures report it.
    """
    norms = as_states(norms, "norms")
    usable = np.where(np.isfinite(norms), norms, 0.0)
    median = np.median(usable, axis=1, keepdims=True)
    return ((usable > factor * median) & (median > 0)).any(axis=0)
