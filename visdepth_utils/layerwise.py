"""Geometry of image and text tokens at every layer of a model, as one tidy table.

Two passes per batch. The first keeps norms only, to find sink tokens: one mask for all layers, so
that N is constant over depth. The second reduces each state as it appears. Beside the model's own
tensors there live the previous updates of the measured tokens (at most one layer's states), a few
Gram matrices, and float64 copies of one sample at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from visdepth_utils.blocks import in_blocks
from visdepth_utils.capture import capture
from visdepth_utils.geometry import sink_mask
from visdepth_utils.grams import draws as token_draws
from visdepth_utils.tracks import Track

if TYPE_CHECKING:
    from visdepth_utils.datasets import Sample
    from visdepth_utils.encoding import Encoded
    from visdepth_utils.tasks import Task
    from visdepth_utils.vlm import VLM

METRICS = ("entropy", "id_twonn", "id_mle", "curvature", "update_ratio", "cka_ahead")
"""Metrics by default; ``"id_gride"`` is one more."""

Batch = tuple["Encoded", dict[str, torch.Tensor]]
"""Encoded samples, and group of tokens -> mask, bool (B, S)."""

COLUMNS = ("sample", "image", "modality", "layer", "metric", "value", "n_tokens", "note")

_OPTIONS = {
    "entropy": ("normalise", "alpha", "scale", "compat"),
    "twonn": ("method", "discard_fraction"),
    "mle": ("k", "comb"),
    "gride": ("n1",),
    "dimension": ("dtype_tol", "n_min"),
    "cka": ("debiased",),
    "sinks": ("factor",),
}


def layer_geometry(
    vlm: VLM,
    task: Task | Sequence[Sample],
    *,
    modalities: Sequence[str] = ("image", "text"),
    metrics: Sequence[str] = METRICS,
    n0: int = 64,
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 8,
    sinks: str = "drop",
    cka_gap: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
    **variants: Any,
) -> pd.DataFrame:
    """Measure the states of image and text tokens, layer by layer, with the reference appended.

    ``entropy``, ``id_twonn``, ``id_mle`` and ``id_gride`` change with the number of tokens, so they
    are means over random draws of exactly n0 tokens, the same draws at every layer; fewer tokens
    give NaN, never a smaller N. ``curvature`` (mean angle in degrees between v_l and v_{l-1}),
    ``update_ratio`` (median |v_l|/|h_l|) and ``cka_ahead`` (debiased CKA of h_l and h_{l+gap}) do
    not, and use all kept tokens.

    Layers: entropy and dimensions at states l = 0..L (state L before the final norm), update_ratio
    at updates v_l = h_{l+1} - h_l, l = 0..L-1, curvature at l = 1..L-1, CKA at l = 0..L-gap.

    Args:
        vlm: The model.
        task: A task, or samples.
        modalities: ``"image"``, ``"text"`` or both.
        metrics: Which of METRICS and ``"id_gride"``.
        n0: Tokens per draw, one number for a whole study.
        draws: Number of draws.
        seed: Of the draws, with sample id and modality; not of layer or batch.
        batch_size: Samples per forward pass; has no effect on the values beyond rounding. Halved
            when memory runs out.
        sinks: ``"drop"`` leaves out tokens whose norm exceeds 10 medians of their type at any
            layer; ``"keep"`` keeps them.
        cka_gap: Layers ahead.
        progress: Called with (done, total, label).
        **variants: Options of the measures by their own names: ``normalise, alpha, scale, compat``
            (entropy, by default divided by log n0), ``method, discard_fraction`` (TwoNN), ``k,
            comb`` (MLE), ``n1`` (GRIDE), ``dtype_tol, n_min`` (all dimensions), ``debiased`` (CKA),
            ``factor`` (sinks).

    Returns:
        One row per sample, modality, layer and metric: ``sample, image, modality, layer, metric,
        value, n_tokens`` (kept tokens) and ``note``: why a value is NaN, or what was left out.

    Raises:
        ValueError: Unknown metric, modality, sinks or variant; n0, draws or cka_gap out of range.
    """
    _check_names(modalities, ("image", "text"), "modalities")
    samples = list(getattr(task, "samples", task))

    def measure(block: list[Sample], _rows: int) -> list[pd.DataFrame]:
        enc = vlm.encode(block, with_reference=True)
        return [
            token_geometry(
                vlm,
                [(enc, {modality: enc.mask(modality) for modality in modalities})],
                total=len(block),
                metrics=metrics,
                n0=n0,
                draws=draws,
                seed=seed,
                sinks=sinks,
                cka_gap=cka_gap,
                **variants,
            )
        ]

    if not samples:
        return pd.DataFrame(columns=list(COLUMNS))
    tables = in_blocks(samples, 1, batch_size, measure, progress, "geometry")
    return pd.concat(tables, ignore_index=True)


def token_geometry(
    vlm: VLM,
    batches: Iterable[Batch],
    *,
    total: int,
    metrics: Sequence[str] = METRICS,
    n0: int = 64,
    draws: int = 20,
    seed: int = 0,
    sinks: str = "drop",
    cka_gap: int = 2,
    progress: Callable[[int, int, str], None] | None = None,
    **variants: Any,
) -> pd.DataFrame:
    """As ``layer_geometry``, for any groups of tokens of batches that are encoded already.

    Args:
        vlm: The model.
        batches: Encoded samples, and group -> which of their tokens it holds, bool (B, S). Groups
            may overlap; their names stand in the column ``modality``.
        total: Number of samples, for the progress.
        metrics: As in ``layer_geometry``, as all that follow.
        n0: Tokens per draw.
        draws: Number of draws.
        seed: Of the draws.
        sinks: ``"drop"`` or ``"keep"``; the median is that of the group.
        cka_gap: Layers ahead.
        progress: Called with (done, total, label).
        **variants: Options of the measures.

    Returns:
        The same table.

    Raises:
        ValueError: Unknown metric, sinks or variant; n0, draws or cka_gap out of range.
    """
    options = _options(vlm, variants)
    _check_names(metrics, (*METRICS, "id_gride"), "metrics")
    _check_names([sinks], ("drop", "keep"), "sinks")
    if not 1 <= cka_gap <= vlm.n_layers:
        raise ValueError(f"cka_gap={cka_gap} must be 1..{vlm.n_layers}, the layers of {vlm.name}")
    rows: list[tuple] = []
    done = 0
    for enc, groups in batches:
        norms = _norms(vlm, enc) if sinks == "drop" else None
        tracks = []
        for b, sample in enumerate(enc.samples):
            for name, mask in groups.items():
                where = np.flatnonzero(mask[b].cpu().numpy())
                n_sinks = 0
                if norms is not None and len(where):
                    sink = sink_mask(norms[:, b, where], **options["sinks"])
                    where, n_sinks = where[~sink], int(sink.sum())
                head = (sample.id, sample.image_id, name)
                subsets = token_draws(len(where), n0, draws, (sample.id, name, seed))
                tracks.append(
                    Track(head, b, where, subsets, n0, n_sinks, metrics, cka_gap, options)
                )
        _reduce(vlm, enc, tracks)
        rows += [row for track in tracks for row in track.rows]
        done += len(enc.samples)
        if progress:
            progress(done, total, "geometry")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _check_names(given: Sequence[str], known: Sequence[str], what: str) -> None:
    """Refuse an empty list and name what is unknown."""
    unknown = [name for name in given if name not in known]
    if unknown or not given or isinstance(given, str):
        raise ValueError(f"{what}={given!r}: use a list out of {', '.join(known)}")


def _options(vlm: VLM, variants: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort variants by measure; a rounded model gets a wider tolerance for duplicates."""
    known = [name for names in _OPTIONS.values() for name in names]
    unknown = sorted(set(variants) - set(known))
    if unknown:
        raise ValueError(f"unknown variant {unknown[0]!r}: known variants are {', '.join(known)}")
    if vlm.dtype != torch.float32:
        variants = {"dtype_tol": 1e-3, **variants}
    return {
        measure: {name: variants[name] for name in names if name in variants}
        for measure, names in _OPTIONS.items()
    }


def _norms(vlm: VLM, enc: Encoded) -> np.ndarray:
    """|h_l| of every token, (L+1, B, S)."""
    norms: list[torch.Tensor] = []
    capture(vlm, enc, lambda _, state: norms.append(state.norm(dim=-1).cpu()))
    return torch.stack(norms).numpy()


def _reduce(vlm: VLM, enc: Encoded, tracks: list[Track]) -> None:
    """Second pass: show every track its tokens, state by state."""
    previous: torch.Tensor | None = None

    def visitor(layer: int, state: torch.Tensor) -> None:
        nonlocal previous
        for track in tracks:
            if len(track.where):
                old = None if previous is None else previous[track.b, track.where]
                track.visit(layer, state[track.b, track.where], old)
        # A reference: the model holds this tensor anyway until its layer returns.
        previous = state

    # Matrices of n0 tokens are too small for threads: on two cores, two took twice as long as one.
    with threadpool_limits(1, user_api="blas"):
        capture(vlm, enc, visitor)
    for track in tracks:
        if not len(track.where):
            track.nothing(vlm.n_layers)
