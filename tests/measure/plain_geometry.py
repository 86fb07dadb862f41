"""The measures of one token set at one layer, called one by one on arrays (N, D)."""

from typing import Any

import numpy as np
import torch

from visdepth_utils.measure.geometry.cka_curvature import angle, cka_of, hsic, ratio, unit_trace
from visdepth_utils.measure.geometry.entropy import entropy_from_gram
from visdepth_utils.measure.geometry.gram import as_tensor, gram


def matrix_entropy(H: Any, normalise: str = "center+row", **options: Any) -> tuple[float, str]:
    G = gram(H, center=normalise.startswith("center"))
    value, note = entropy_from_gram(G, normalise=normalise, **options)
    return float(value), note


def depth_curvature(v_prev: Any, v: Any, floor: Any = 0.0) -> np.ndarray:
    return angle(as_tensor(v_prev), as_tensor(v), as_tensor(floor)).numpy()


def update_ratio(v: Any, h: Any) -> np.ndarray:
    return ratio(as_tensor(v), as_tensor(h)).numpy()


def debiased_cka(X: Any, Y: Any, debiased: bool = True) -> tuple[float, str]:
    (K, excess), (L, other) = (unit_trace(G.values, G.square_norms) for G in (gram(X), gram(Y)))
    parts = (hsic(K, L, debiased), hsic(K, K, debiased), hsic(L, L, debiased), excess, other)
    return cka_of(len(X), *torch.stack(parts).tolist())
