"""Gram matrices of token sets, and draws of token subsets of one size.

Everything is in float64 on the device of the states; devices without float64 (MPS) hand over to
the host. Nothing here waits for the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

HAVE_FLOAT64 = ("cpu", "cuda")
"""Types of devices that compute in float64."""
DTYPE_TOL = 1e-6
"""fp32 states: spread below this fraction of the token norm is rounding."""


def wide(H: torch.Tensor) -> torch.Tensor:
    """As float64, on the host if the device has none."""
    return (H if H.device.type in HAVE_FLOAT64 else H.cpu()).double()


def as_tensor(H: Any) -> torch.Tensor:
    """Return a tensor of any device and dtype, or an array, as a float64 tensor."""
    if isinstance(H, torch.Tensor):
        return wide(H.detach())
    return torch.from_numpy(np.array(H, dtype=np.float64))


def host(values: torch.Tensor) -> np.ndarray:
    """Wait for the device and copy: each call is one stop."""
    return values.cpu().numpy()


def check_option(value: Any, known: tuple, name: str) -> None:
    """Raise a ValueError that lists ``known`` when ``value`` is not among them."""
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(map(repr, known))}")


def trace(K: torch.Tensor) -> torch.Tensor:
    """Sums of diagonals, (...,) of (..., N, N)."""
    return K.diagonal(dim1=-2, dim2=-1).sum(-1)


def inverse_norm(square: torch.Tensor, floor: torch.Tensor | float) -> torch.Tensor:
    """1/sqrt(square), or 0 where a vector is only rounding and so has no direction."""
    return torch.where(square > floor, square.rsqrt(), 0.0)


@dataclass(frozen=True)
class Gram:
    """Inner products (..., N, N) of one token set, or of many; serves entropy, dimension and CKA.

    ``square_norms`` (..., N) are of the *raw* states: the yardstick for "no spread". ``centred``:
    whether the mean of all tokens was subtracted first. ``n_dims``: D of the states.
    """

    values: torch.Tensor
    square_norms: torch.Tensor
    centred: bool
    n_dims: int

    def __getitem__(self, index: int) -> Gram:
        """One of many, by the first axis."""
        return replace(self, values=self.values[index], square_norms=self.square_norms[index])

    def take(self, index: np.ndarray) -> Gram:
        """Sub-Grams (..., R, n0, n0) at token indices (R, n0) or (n0,); the mean is not theirs."""
        at = torch.as_tensor(index, device=self.values.device)
        values = self.values[..., at[..., :, None], at[..., None, :]]
        return replace(self, values=values, square_norms=self.square_norms[..., at])

    def recentred(self) -> torch.Tensor:
        """Products after subtracting each subset's own mean (double centring), (..., N, N)."""
        rows = self.values.mean(-1, keepdim=True)
        return self.values - rows - rows.mT + rows.mean(-2, keepdim=True)


def gram(H: Any, *, center: bool = True) -> Gram:
    """Gram matrix of states (..., N, D), on their device.

    ``center`` subtracts the mean of all tokens first. Keep it on unless a "raw" or "row" entropy
    is wanted: a large common offset costs digits that centring the Gram cannot give back.
    """
    X = as_tensor(H)
    if X.ndim < 2 or 0 in X.shape:
        raise ValueError(f"H must have shape (tokens, dimensions), got {tuple(X.shape)}")
    Z = X - X.mean(-2, keepdim=True) if center else X
    return Gram(_products(Z), X.square().sum(-1), center, X.shape[-1])


def _products(Z: torch.Tensor) -> torch.Tensor:
    """Z Z^T (..., N, N): blocks on and above the diagonal are computed, the others mirrored."""
    n = Z.shape[-2]
    size = n if n < 256 else -(-n // 8)
    K = Z.new_empty((*Z.shape[:-1], n))
    for start in range(0, n, size):
        stop = start + size
        K[..., start:stop, start:] = Z[..., start:stop, :] @ Z[..., start:, :].mT
        K[..., stop:, start:stop] = K[..., start:stop, stop:].mT
    return K


def draws(
    n_tokens: int, n0: int = 64, n_draws: int = 20, seed: int | str | Sequence[int | str] = 0
) -> np.ndarray | None:
    """Random token subsets of one size, shared by all layers: N is matched, never lowered.

    Indices (R, n0) without replacement, sorted; (1, n0) when n_tokens == n0, as all draws are then
    the same set; None when n_tokens < n0. Equal seeds, e.g. (sample id, modality, 0), give equal
    draws.
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
