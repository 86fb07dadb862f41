"""Gram matrices of token sets, and draws of token subsets of one size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def as_states(H: Any, name: str = "H") -> np.ndarray:
    """Return ``H`` (tensor of any device and dtype, or array) as a float64 array (N, D)."""
    if hasattr(H, "detach"):  # a tensor: move first, because some devices have no float64
        H = H.detach().cpu().double().numpy()
    X = np.asarray(H, dtype=np.float64)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name} must have shape (tokens, dimensions), got {X.shape}")
    return X


def check_option(value: Any, known: tuple, name: str) -> None:
    """Raise a ValueError that lists ``known`` when ``value`` is not among them."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(map(repr, known))}")


def inverse_norm(square: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """1/sqrt(square), or 0 where a vector is only rounding and so has no direction."""
    keep = square > floor
    return np.where(keep, 1.0 / np.sqrt(np.where(keep, square, 1.0)), 0.0)


@dataclass(frozen=True)
class Gram:
    """Inner products of one token set, or of R subsets; serves entropy, dimension and CKA.

    Attributes:
        values: (..., N, N) float64.
        square_norms: (..., N) squared norms of the *raw* states: the yardstick for "no spread".
        centred: whether the mean of all tokens was subtracted before taking products.
        n_dims: D of the states.
    """

    values: np.ndarray
    square_norms: np.ndarray
    centred: bool
    n_dims: int

    def take(self, index: np.ndarray) -> Gram:
        """Sub-Grams (R, n0, n0) at token indices (R, n0) or (n0,); the mean is not yet theirs."""
        index = np.asarray(index)
        values = self.values[index[..., :, None], index[..., None, :]]
        return Gram(values, self.square_norms[index], self.centred, self.n_dims)

    def recentred(self) -> np.ndarray:
        """Products after subtracting each subset's own mean (double centring), (..., N, N)."""
        rows = self.values.mean(axis=-1, keepdims=True)
        return self.values - rows - np.swapaxes(rows, -1, -2) + rows.mean(axis=-2, keepdims=True)


def gram(H: Any, *, center: bool = True) -> Gram:
    """Gram matrix of states (N, D).

    ``center`` subtracts the mean of all tokens first. Keep it on unless a "raw" or "row" entropy
    is wanted: a large common offset costs digits that centring the Gram cannot give back.
    """
    X = as_states(H)
    with np.errstate(all="ignore"):  # NaN and overflow are reported by whoever reads the Gram
        Z = X - X.mean(axis=0) if center else X
        return Gram(Z @ Z.T, (X * X).sum(axis=1), center, X.shape[1])


def draws(
    n_tokens: int, n0: int = 64, n_draws: int = 20, seed: int | str | Sequence[int | str] = 0
) -> np.ndarray | None:
    """Random token subsets of one size, shared by all layers: N is matched, never lowered.

    Args:
        n_tokens: tokens available.
        n0: tokens per draw, the same for the whole study.
        n_draws: number of draws R.
        seed: anything stable, e.g. (sample id, modality, 0); equal seeds give equal draws.

    Returns:
        Indices (R, n0) without replacement, sorted; (1, n0) when n_tokens == n0, as all draws
        are then the same set; None when n_tokens < n0.
    """
    if n0 < 2 or n_draws < 1:
        raise ValueError(f"n0 must be at least 2 and n_draws at least 1, got {n0} and {n_draws}")
    if n_tokens < n0:
        return None
    if n_tokens == n0:
        return np.arange(n0)[None, :]
    key = "|".join(map(str, [seed] if isinstance(seed, int | str) else seed))
    rng = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    return np.sort(rng.random((n_draws, n_tokens)).argsort(axis=1)[:, :n0], axis=1)
