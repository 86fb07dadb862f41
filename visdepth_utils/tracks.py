"""One modality of one sample on its way through the layers: states in, table rows out.

Nothing here knows a model. A track keeps what the next layers need (the previous update and a few
Gram matrices) and forgets the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from visdepth_utils.dimension import intrinsic_dimension, mle_from_gram, neighbours, twonn_from_gram
from visdepth_utils.geometry import (
    debiased_cka,
    depth_curvature,
    entropy_from_gram,
    matrix_entropy,
    update_ratio,
)
from visdepth_utils.grams import Gram, gram

MATCHED = ("entropy", "id_twonn", "id_mle", "id_gride")
"""Metrics that depend on N, computed on draws of exactly n0 tokens."""

BLOCK = 128
"""Tokens whose updates are handled at a time."""


class Track:
    """Tokens of one type in one sample.

    Attributes:
        rows: The table rows so far.
    """

    def __init__(
        self,
        head: tuple[str, str, str],
        b: int,
        where: np.ndarray,
        subsets: np.ndarray | None,
        n0: int,
        n_sinks: int,
        metrics: Sequence[str],
        cka_gap: int,
        options: dict[str, dict[str, Any]],
    ) -> None:
        """Set up one token set before its first state.

        Args:
            head: Sample id, image id and modality, the first columns of every row.
            b: Row of the sample in its batch.
            where: (N,) positions of the kept tokens in the sequence.
            subsets: (R, n0) draws, as indices into ``where``; None if N < n0.
            n0: Tokens per draw.
            n_sinks: How many sink tokens were left out, for the note.
            metrics: What to measure.
            cka_gap: Layers between the two states of ``cka_ahead``.
            options: Measure -> its named options.
        """
        self.head, self.b, self.where, self.subsets, self.n0 = head, b, where, subsets, n0
        self.metrics, self.cka_gap, self.options = metrics, cka_gap, options
        self.note = f"{n_sinks} sink tokens left out" if n_sinks else ""
        self.rows: list[tuple] = []
        self.grams: deque[Gram] = deque(maxlen=cka_gap)
        self.v_prev: np.ndarray | None = None

    def add(self, layer: int, metric: str, value: float, note: str = "") -> None:
        """Append one row."""
        note = "; ".join(part for part in (note, self.note) if part)
        self.rows.append((*self.head, layer, metric, float(value), len(self.where), note))

    def nothing(self, n_layers: int) -> None:
        """Rows of a sample without a single token of this type."""
        for metric in self.metrics:
            first = 1 if metric == "curvature" else 0
            last = {"curvature": 0, "update_ratio": 0, "cka_ahead": 1 - self.cka_gap}.get(metric, 1)
            for layer in range(first, n_layers + last):
                self.add(layer, metric, np.nan, f"no {self.head[2]} tokens")

    def visit(self, layer: int, state: torch.Tensor, previous: torch.Tensor | None) -> None:
        """Take in state l (N, D); ``previous`` is state l-1 of the same tokens."""
        H = _float64(state)
        G = gram(H) if {*MATCHED, "cka_ahead"} & set(self.metrics) else None
        self.matched(layer, H, G)
        if "cka_ahead" in self.metrics:
            if len(self.grams) == self.cka_gap:
                value, note = debiased_cka(self.grams[0], G, **self.options["cka"])
                self.add(layer - self.cka_gap, "cka_ahead", value, note)
            # What waits for later layers waits in half the memory; CKA loses its seventh digit.
            self.grams.append(replace(G, values=G.values.astype(np.float32)))
        if previous is not None and {"curvature", "update_ratio"} & set(self.metrics):
            self.motion(layer - 1, H, previous)

    def motion(self, layer: int, after: np.ndarray, previous: torch.Tensor) -> None:
        """Update v_l = h_{l+1} - h_l: its size, and its angle to the update before."""
        first = self.v_prev is None
        if first:
            self.v_prev = np.empty(after.shape, np.float32)
        ratios, angles = [], []
        for start in range(0, len(after), BLOCK):  # in blocks, to keep float64 copies small
            part = slice(start, start + BLOCK)
            before = _float64(previous[part])
            v = after[part] - before
            ratios.append(update_ratio(v, before))
            if not first:
                size = np.linalg.norm(before, axis=1)
                angles.append(depth_curvature(self.v_prev[part], v, size))
            self.v_prev[part] = v
        if "update_ratio" in self.metrics:
            self.average(layer, "update_ratio", np.concatenate(ratios), np.median)
        if "curvature" in self.metrics and not first:
            self.average(layer, "curvature", np.degrees(np.concatenate(angles)), np.mean)

    def matched(self, layer: int, H: np.ndarray, G: Gram | None) -> None:
        """Entropy and dimensions, each a mean over the draws of n0 tokens."""
        wanted = [metric for metric in self.metrics if metric in MATCHED]
        if not wanted:
            return
        if self.subsets is None:
            for metric in wanted:
                self.add(layer, metric, np.nan, f"{len(H)} tokens, fewer than n0={self.n0}")
            return
        parts = G.take(self.subsets)
        options = self.options
        shared = {k: v for k, v in options["dimension"].items() if k == "dtype_tol"}
        if {"id_twonn", "id_mle"} & set(wanted):
            near = neighbours(parts, k=max(2, options["mle"].get("k", 20)), **shared)
        for metric in wanted:
            if metric == "entropy":
                values, note = self.entropies(H, parts)
            elif metric == "id_twonn":
                found = twonn_from_gram(near, **options["twonn"], **options["dimension"])
                values, note = found.value, found.note
            elif metric == "id_mle":
                found = mle_from_gram(near, **options["mle"], **options["dimension"])
                values, note = found.value, found.note
            else:
                kwargs = options["gride"] | options["dimension"]
                singles = [
                    intrinsic_dimension(G.take(s), estimator="gride", **kwargs)
                    for s in self.subsets
                ]
                values = np.array([one.value for one in singles])
                note = next((one.note for one in singles if one.note), "")
            self.average(layer, metric, values, np.mean, note, "draws")

    def entropies(self, H: np.ndarray, parts: Gram) -> tuple[np.ndarray, str]:
        """Entropy of every draw, from Grams where the variant allows it."""
        kwargs = self.options["entropy"]
        normalise, compat = kwargs.get("normalise"), kwargs.get("compat")
        if normalise == "standardise" or (compat == "skean" and self.n0 > H.shape[1]):
            found = [matrix_entropy(H[subset], **kwargs) for subset in self.subsets]
            return np.array([f[0] for f in found]), next((f[1] for f in found if f[1]), "")
        if normalise in ("raw", "row"):
            parts = gram(H, center=False).take(self.subsets)
        return entropy_from_gram(parts, **kwargs)

    def average(
        self,
        layer: int,
        metric: str,
        values: np.ndarray,
        how: Callable[[np.ndarray], float],
        note: str = "",
        unit: str = "tokens",
    ) -> None:
        """Add the average of what is defined, and say how much was not."""
        values = np.atleast_1d(values)
        good = values[np.isfinite(values)]
        if len(good) < len(values):
            lost = f"{len(values) - len(good)} of {len(values)} {unit} undefined"
            note = f"{lost}: {note}" if note else lost
        self.add(layer, metric, how(good) if len(good) else np.nan, note)


def _float64(state: torch.Tensor) -> np.ndarray:
    """(N, D) on the host; moved before it is widened, because some devices have no float64."""
    return state.cpu().double().numpy()
