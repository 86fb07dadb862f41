"""Matrix entropy of token sets, from their Gram matrices."""

import numpy as np
import torch

from visdepth_utils.measure.geometry.gram import (
    DTYPE_TOL,
    Gram,
    check_option,
    host,
    inverse_norm,
    trace,
)

NORMALISE = ("center+row", "center", "row", "raw")
SCALES = ("log_n", "max", "max_centred", "none", "effective_rank")

CHUNK_ELEMENTS = 2**23
"""Numbers in the matrices whose eigenvalues are found at once: 64 MiB, and a few copies of it."""


def _spectrum(K: torch.Tensor) -> torch.Tensor:
    """Eigenvalues (..., m) of K (..., m, m), in chunks: each needs room for copies."""
    flat = K.reshape(-1, *K.shape[-2:])
    parts = flat.split(max(1, CHUNK_ELEMENTS // flat[0].numel()))
    return torch.cat([torch.linalg.eigvalsh(part) for part in parts]).reshape(K.shape[:-1])


def _spectral_entropy(K: torch.Tensor, alpha: float) -> torch.Tensor:
    """Renyi entropy (...,) of the trace-normalised spectrum of each K (..., m, m)."""
    if alpha == 2:  # -log ||K / tr K||_F^2: no eigenvalues needed
        return -((K * K).sum((-1, -2)) / trace(K) ** 2).log()
    p = _spectrum(K).clamp(min=0)
    p = p / p.sum(-1, keepdim=True)
    if alpha == 1:
        return torch.special.entr(p).sum(-1)
    if np.isinf(alpha):
        return -p.amax(-1).log()
    return (p**alpha).sum(-1).log() / (1.0 - alpha)


def _scaled_entropy(
    K: torch.Tensor, spread: torch.Tensor, shape: tuple[int, int], alpha: float, scale: str
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
    S = _spectral_entropy(torch.where(good[..., None, None], K, one), alpha)
    S = S.clamp(min=0)  # rank one rounds to -1e-16
    S = S.exp() if scale == "effective_rank" else S / (np.log(top) if top else 1.0)
    value, finite = host(torch.stack([torch.where(good, S, torch.nan), finite.double()]))
    if not np.isnan(value).any():
        return value, ""
    return value, "no spread between tokens" if finite.all() else "non-finite values in states"


def entropy_from_gram(
    G: Gram, *, normalise: str = "center+row", alpha: float = 1.0, scale: str = "log_n"
) -> tuple[np.ndarray, str]:
    """Entropy of the eigenvalue distribution of Z Z^T / tr, Z = normalised states (N, D).

    S_1 = -sum p log p (von Neumann), S_a = log(sum p^a) / (1 - a) (Renyi); natural logarithm.

    Args:
        G: Of one token set, or of R subsets, each of which is re-centred on its own tokens.
        normalise: "center+row" (subtract the mean, then unit rows), "center", or, of a
            ``gram(H, center=False)``, "row" or "raw".
        alpha: Renyi order > 0; 1 is von Neumann, ``inf`` is -log of the largest eigenvalue.
        scale: divide by log N ("log_n"), log min(N, D) ("max"), log min(N-1, D) ("max_centred",
            the reachable maximum once centred), by nothing ("none"); "effective_rank" = exp(S).

    Returns:
        Values (...,) and "", or NaN and the first reason. An unknown option is a ValueError.
    """
    check_option(normalise, NORMALISE, "normalise")
    check_option(scale, SCALES, "scale")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha!r}")
    n, d = G.values.shape[-1], G.n_dims
    if normalise in ("raw", "row") and G.centred:
        raise ValueError(f"normalise={normalise!r} needs an uncentred Gram: gram(H, center=False)")
    K = G.values if normalise in ("raw", "row") else G.recentred()
    own = K.diagonal(dim1=-2, dim2=-1)
    spread = own.sum(-1) > DTYPE_TOL**2 * G.square_norms.sum(-1)
    if normalise.endswith("row"):
        inverse = inverse_norm(own, DTYPE_TOL**2 * G.square_norms)
        K = K * inverse[..., :, None] * inverse[..., None, :]
    return _scaled_entropy(K, spread, (n, d), alpha, scale)
