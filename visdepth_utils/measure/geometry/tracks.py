"""One group of tokens of one sample: its states at all layers in, table rows out.

Nothing here knows a model. States are widened to float64 in chunks, on their own device; the host
waits for a few numbers per chunk of layers, never for one layer or token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from visdepth_utils.measure.geometry.cka_curvature import (
    TOO_FEW,
    angle,
    cka_of,
    hsic,
    ratio,
    unit_trace,
)
from visdepth_utils.measure.geometry.dimension import (
    Neighbours,
    mle_from_gram,
    neighbours,
    twonn_from_gram,
)
from visdepth_utils.measure.geometry.entropy import entropy_from_gram
from visdepth_utils.measure.geometry.gram import Gram, gram, host, wide

MATCHED = ("entropy", "id_twonn", "id_mle")
"""Metrics that depend on N, computed on draws of exactly n0 tokens."""

DELAY = {"update_ratio": 1, "curvature": 1}
"""By how many states a metric waits for what it needs; ``cka_ahead`` for the gap."""

TINY = 1e-12
"""An update no longer than this share of its state is none."""

CHUNK_BYTES = 2**28
"""Of float64 numbers at once; all layers of a small set, one layer of a large one."""


@dataclass
class Track:
    """Tokens of one type in one sample, and the table rows of them so far."""

    head: tuple[str, str, str]  # sample id, image id and modality, the first columns of every row
    n_tokens: int  # N, kept tokens
    subsets: np.ndarray | None  # draws (R, n0), indices into the N; None if N < n0
    n0: int
    n_sinks: int  # that were left out
    metrics: Sequence[str]
    cka_gap: int
    options: dict[str, dict[str, Any]]  # measure -> its named options
    rows: list[tuple] = field(default_factory=list)

    def add(self, layer: int, metric: str, value: float, note: str = "") -> None:
        """Append one row."""
        sinks = f"{self.n_sinks} sink tokens left out" if self.n_sinks else ""
        note = "; ".join(part for part in (note, sinks) if part)
        self.rows.append((*self.head, layer, metric, float(value), self.n_tokens, note))

    def nothing(self, n_layers: int) -> None:
        """Rows of a sample without a single token of this type."""
        for metric in self.metrics:
            first = 1 if metric == "curvature" else 0
            last = {"curvature": 0, "update_ratio": 0, "cka_ahead": 1 - self.cka_gap}.get(metric, 1)
            for layer in range(first, n_layers + last):
                self.add(layer, metric, np.nan, f"no {self.head[2]} tokens")

    def measure(self, states: torch.Tensor) -> None:
        """Add the rows of states (L+1, N, D) of these tokens, in order of layer."""
        self.by_layer(states)
        if {"curvature", "update_ratio"} & set(self.metrics):
            self.motion(states)
        delay = DELAY | {"cka_ahead": self.cka_gap}
        self.rows.sort(key=lambda row: row[3] + delay.get(row[4], 0))

    def by_layer(self, states: torch.Tensor) -> None:
        """Entropy, dimensions and CKA, from one set of products where these are cheaper."""
        (depth, n, d), gap = states.shape, self.cka_gap
        wanted = [metric for metric in self.metrics if metric in MATCHED]
        if wanted and self.subsets is None:
            self.unknown(wanted, depth, f"{n} tokens, fewer than n0={self.n0}")
            wanted = []
        similar = "cka_ahead" in self.metrics and n >= 4
        whole = similar or (wanted and n * n <= self.subsets.size * self.n0)
        raw = "entropy" in wanted and self.options["entropy"].get("normalise") in ("raw", "row")
        size = 2 * n * d + (3 * n * n if whole else 0)
        if wanted and (raw or not whole):
            size += 2 * self.subsets.size * d
        drawn: list[Gram] = []
        uncentred: list[Gram] = []
        found: list[torch.Tensor] = []
        waiting = states.new_empty((0, n, n), dtype=torch.float64)
        for chunk in states.split(max(1, CHUNK_BYTES // (8 * size))) if wanted or similar else ():
            H = wide(chunk)
            G = gram(H) if whole else None
            if wanted:
                drawn.append(G.take(self.subsets) if G else gram(H[:, self.subsets]))
            if raw:
                uncentred.append(gram(H[:, self.subsets], center=False))
            if similar:
                K, excess = unit_trace(G.values, G.square_norms)
                both = torch.cat([waiting.to(K), K])
                debiased = self.options["cka"].get("debiased", True)
                cross = hsic(both[:-gap], both[gap:], debiased)
                # Pairs end in this chunk; before the first layer nothing waits.
                cross = torch.cat([cross.new_zeros(len(K) - len(cross)), cross])
                found.append(torch.stack([cross, hsic(K, K, debiased), excess]))
                waiting = both[-gap:]
        if wanted:
            self.matched(wanted, _joined(drawn), _joined(uncentred or drawn))
        if similar:
            cross, own, excess = host(torch.cat(found, 1))
            for i in range(depth - gap):
                j = i + gap
                pair = cka_of(n, cross[j], own[i], own[j], excess[i], excess[j])
                self.add(i, "cka_ahead", *pair)
        elif "cka_ahead" in self.metrics:
            self.unknown(["cka_ahead"], depth - gap, TOO_FEW.format(n))

    def unknown(self, metrics: Sequence[str], n_layers: int, note: str) -> None:
        """Rows of metrics for which there are too few tokens."""
        for metric in metrics:
            for layer in range(n_layers):
                self.add(layer, metric, np.nan, note)

    def motion(self, states: torch.Tensor) -> None:
        """Updates v_l = h_{l+1} - h_l: their size, and their angle to the update before."""
        depth, _, d = states.shape
        ratios, angles = [], []
        for part in states.split(max(1, CHUNK_BYTES // (8 * 6 * depth * d)), dim=1):
            H = wide(part)
            v = H.diff(dim=0)
            ratios.append(ratio(v, H[:-1]))
            angles.append(angle(v[:-1], v[1:], TINY * H[1:-1].norm(dim=-1)))
        if "update_ratio" in self.metrics:
            self.average("update_ratio", 0, host(torch.cat(ratios, 1)), np.median)
        if "curvature" in self.metrics:
            self.average("curvature", 1, np.degrees(host(torch.cat(angles, 1))), np.mean)

    def matched(self, wanted: list[str], parts: Gram, own: Gram) -> None:
        """Entropy and dimensions (L+1, R), each a mean over the draws of n0 tokens.

        ``parts``: products of the draws (L+1, R, n0, n0); ``own``: these with the centring that the
        entropy wants.
        """
        options = self.options
        size = max(1, CHUNK_BYTES // (8 * 8 * parts.values[0].numel()))
        shared = {k: v for k, v in options["dimension"].items() if k == "dtype_tol"}
        for start in range(0, len(parts.values), size):
            some = slice(start, start + size)
            if {"id_twonn", "id_mle"} & set(wanted):
                near = neighbours(parts[some], k=max(2, options["mle"].get("k", 20)), **shared)
            for metric in wanted:
                if metric == "entropy":
                    values, notes = _noted(entropy_from_gram, own[some], options["entropy"])
                else:
                    estimator = {"id_twonn": twonn_from_gram, "id_mle": mle_from_gram}[metric]
                    kwargs = options[metric.removeprefix("id_")] | options["dimension"]
                    values, notes = _noted(estimator, near, kwargs)
                self.average(metric, start, values, np.mean, notes, "draws")

    def average(
        self,
        metric: str,
        first: int,
        values: np.ndarray,
        how: Callable[..., np.ndarray],
        notes: Sequence[str] = (),
        unit: str = "tokens",
    ) -> None:
        """Add the averages of rows (layers, n), as far as defined, and say how much was not."""
        good = np.isfinite(values)
        means = how(values, axis=1)
        for i, row in enumerate(values):
            value, note = means[i], notes[i] if notes else ""
            if not good[i].all():
                lost = f"{len(row) - good[i].sum()} of {len(row)} {unit} undefined"
                note = f"{lost}: {note}" if note else lost
                value = how(row[good[i]], axis=0) if good[i].any() else np.nan
            self.add(first + i, metric, value, note)


def _joined(grams: Sequence[Gram]) -> Gram:
    """Grams of successive layers as one."""
    values, norms = (
        torch.cat([getattr(G, name) for G in grams]) for name in ("values", "square_norms")
    )
    return replace(grams[0], values=values, square_norms=norms)


def _noted(
    measure: Callable[..., Any], table: Gram | Neighbours, kwargs: dict[str, Any]
) -> tuple[np.ndarray, list[str]]:
    """Values (layers, R) of a table with layers first, and the first reason of each layer."""
    values, note = measure(table, **kwargs)
    if not note:
        return values, [""] * len(values)
    return values, [measure(table[layer], **kwargs)[1] for layer in range(len(values))]
