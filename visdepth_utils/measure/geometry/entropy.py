"""Matrix entropy of one token set, from its states or from Gram matrices of its subsets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from visdepth_utils.measure.geometry.gram import (
    DTYPE_TOL,
    Gram,
    as_states,
    check_option,
    host,
    inverse_norm,
    trace,
)

NORMALISE = ("center+row", "center", "row", "raw", "standardise")
SCALES = ("log_n", "max", "max_centred", "none", "effective_rank")
COMPAT = (None, "skean", "roy-vetterli")

CHUNK_ELEMENTS = 2**23
"""Numbers in the matrices whose eigenvalues are found at once: 64 MiB, and a few copies of it."""


def _check_entropy(normalise: str, alpha: float, scale: str, compat: str | None) -> None:
    check_option(normalise, NORMALISE, "normalise")
    check_option(scale, SCALES, "scale")
    check_option(compat, COMPAT, "compat")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha!r}")


def _spectrum(K: torch.Tensor) -> torch.Tensor:
    """Eigenvalues (..., m) of K (..., m, m), in chunks: each needs room for copies."""
    flat = K.reshape(-1, *K.shape[-2:])
    parts = flat.split(max(1, CHUNK_ELEMENTS // flat[0].numel()))
    return torch.cat([torch.linalg.eigvalsh(part) for part in parts]).reshape(K.shape[:-1])


def _spectral_entropy(K: torch.Tensor, alpha: float, compat: str | None) -> torch.Tensor:
    """Renyi entropy (...,) of the trace-normalised spectrum of each K (..., m, m)."""
    if compat == "skean":
        K = K.clamp(min=0)  # as in public code; K is no longer positive semi-definite
    if alpha == 2 and compat is None:  # -log ||K / tr K||_F^2: no eigenvalues needed
        return -((K * K).sum((-1, -2)) / trace(K) ** 2).log()
    p = _spectrum(K).clamp(min=0)
    p = p.sqrt() if compat == "roy-vetterli" else p
    p = p / p.sum(-1, keepdim=True)
    if alpha == 1:
        return torch.special.entr(p).sum(-1)
    if np.isinf(alpha):
        return -p.amax(-1).log()
    return (p**alpha).sum(-1).log() / (1.0 - alpha)


def _scaled_entropy(
    K: torch.Tensor,
    spread: torch.Tensor,
    shape: tuple[int, int],
    alpha: float,
    scale: str,
    compat: str | None,
) -> tuple[np.ndarray, str]:
    """Entropies of K (..., m, m) where ``spread`` (...,), else NaN; ``shape`` is (N, D)."""
    n, d = shape
    top = {"log_n": n, "max": min(n, d), "max_centred": min(n - 1, d)}.get(scale)
    if n < 2 or top == 1:
        note = f"{n} token(s) in {d} dimension(s): entropy is not defined"
        return np.full(tuple(spread.shape), np.nan), note
    finite = K.isfinite().flatten(-2).all(-1)
    good = finite & spread
    one = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)  # eigvalsh refuses NaN
    S = _spectral_entropy(torch.where(good[..., None, None], K, one), alpha, compat)
    S = S.clamp(min=0)  # rank one rounds to -1e-16
    S = S.exp() if scale == "effective_rank" else S / (np.log(top) if top else 1.0)
    value, finite = host(torch.stack([torch.where(good, S, torch.nan), finite.double()]))
    if not np.isnan(value).any():
        return value, ""
    return value, "no spread between tokens" if finite.all() else "non-finite values in states"


def matrix_entropy(
    H: Any,
    *,
    normalise: str = "center+row",
    alpha: float = 1.0,
    scale: str = "log_n",
    compat: str | None = None,
) -> tuple[float, str]:
    """Entropy of the eigenvalue distribution of Z Z^T / tr, Z = normalised states.

    S_1 = -sum p log p (von Neumann), S_a = log(sum p^a) / (1 - a) (Renyi); natural logarithm.

    Args:
        H: states (N, D).
        normalise: "center+row" (subtract the mean, then unit rows), "center", "row", "raw", or
            "standardise" (unit variance per dimension; Timkey and van Schijndel 2021).
        alpha: Renyi order > 0; 1 is von Neumann, ``inf`` is -log of the largest eigenvalue.
        scale: divide by log N ("log_n"), log min(N, D) ("max"), log min(N-1, D) ("max_centred",
            the reachable maximum once centred), by nothing ("none"); "effective_rank" = exp(S).
        compat: "skean" repeats the clamp of negative Gram entries found in public code,
            "roy-vetterli" uses singular values, not their squares. Not for new results.

    Returns:
        Value and "", or NaN and the reason. An unknown option or shape is a ValueError.
    """
    _check_entropy(normalise, alpha, scale, compat)
    X = as_states(H)
    Z = X if normalise in ("row", "raw") else X - X.mean(0)
    square, own = X * X, Z * Z
    spread = own.sum() > DTYPE_TOL**2 * square.sum()
    if normalise.endswith("row"):
        Z = Z * inverse_norm(own.sum(1), DTYPE_TOL**2 * square.sum(1))[:, None]
    elif normalise == "standardise":
        Z = Z * inverse_norm(own.mean(0), DTYPE_TOL**2 * square.mean(0))
    K = Z @ Z.T if len(Z) <= Z.shape[1] else Z.T @ Z  # same non-zero spectrum
    K = torch.where(square.sum().isfinite(), K, torch.nan)
    value, note = _scaled_entropy(K, spread, X.shape, alpha, scale, compat)
    return float(value), note


def entropy_from_gram(
    G: Gram,
    *,
    normalise: str = "center+row",
    alpha: float = 1.0,
    scale: str = "log_n",
    compat: str | None = None,
) -> tuple[np.ndarray, str]:
    """``matrix_entropy`` of a Gram, or of R subsets at once: values (...,) and the first reason.

    Each subset is re-centred on its own tokens. "raw" and "row" need ``gram(H, center=False)``.
    """
    _check_entropy(normalise, alpha, scale, compat)
    n, d = G.values.shape[-1], G.n_dims
    if normalise == "standardise" or (compat == "skean" and n > d):
        raise ValueError(f"{compat or normalise} needs the states: use matrix_entropy(H, ...)")
    if normalise in ("raw", "row") and G.centred:
        raise ValueError(f"normalise={normalise!r} needs an uncentred Gram: gram(H, center=False)")
    K = G.values if normalise in ("raw", "row") else G.recentred()
    own = K.diagonal(dim1=-2, dim2=-1)
    spread = own.sum(-1) > DTYPE_TOL**2 * G.square_norms.sum(-1)
    if normalise.endswith("row"):
        inverse = inverse_norm(own, DTYPE_TOL**2 * G.square_norms)
        K = K * inverse[..., :, None] * inverse[..., None, :]
    return _scaled_entropy(K, spread, (n, d), alpha, scale, compat)
