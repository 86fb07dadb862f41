"""Geometry of image and text tokens at every layer of a model, as one tidy table.

One pass per batch. The states of the measured tokens stay on their device until the pass is over,
because sink tokens are known only then: one mask for all layers, so that N is constant over depth.
They take (L+1) N D x 4 bytes per sample; a batch for which there is no room is halved.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import Sample
from visdepth_utils.data.tasks import Task
from visdepth_utils.measure import batching
from visdepth_utils.measure.geometry.cka_curvature import sink_mask
from visdepth_utils.measure.geometry.gram import draws as token_draws
from visdepth_utils.measure.geometry.tracks import Track
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.hooks import capture
from visdepth_utils.models.vlm import VLM

METRICS = ("entropy", "id_twonn", "id_mle", "curvature", "update_ratio", "cka_ahead")

COLUMNS = ("sample", "image", "modality", "layer", "metric", "value", "n_tokens", "note")

_OPTIONS = {
    "entropy": ("normalise", "alpha", "scale"),
    "twonn": ("method", "discard_fraction"),
    "mle": ("k", "comb"),
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
    progress: Progress | None = None,
    **variants: Any,
) -> pd.DataFrame:
    """Measure the states of image and text tokens, layer by layer, with the reference appended.

    ``entropy``, ``id_twonn`` and ``id_mle`` change with the number of tokens, so they
    are means over random draws of exactly n0 tokens, the same draws at every layer; fewer tokens
    give NaN, never a smaller N. ``curvature`` (mean angle in degrees between v_l and v_{l-1}),
    ``update_ratio`` (median ``|v_l|/|h_l|``) and ``cka_ahead`` (debiased CKA of h_l and
    h_{l+gap}) do not, and use all kept tokens.

    Layers: entropy and dimensions at states l = 0..L (state L before the final norm), update_ratio
    at updates v_l = h_{l+1} - h_l, l = 0..L-1, curvature at l = 1..L-1, CKA at l = 0..L-gap.

    Args:
        vlm: The model.
        task: A task, or samples.
        modalities: ``"image"``, ``"text"`` or both.
        metrics: Which of METRICS.
        n0: Tokens per draw, one number for a whole study.
        draws: Number of draws.
        seed: Of the draws, with sample id and modality; not of layer or batch.
        batch_size: Samples per forward pass; has no effect on the values beyond rounding. Halved
            when memory runs out.
        sinks: ``"drop"`` leaves out tokens whose norm exceeds 10 medians of their type at any
            layer; ``"keep"`` keeps them.
        cka_gap: Layers ahead.
        progress: Called with (done, total, label).
        **variants: Options of the measures by their own names: ``normalise, alpha, scale``
            (entropy, by default divided by log n0), ``method, discard_fraction`` (TwoNN), ``k,
            comb`` (MLE), ``dtype_tol, n_min`` (all dimensions), ``debiased`` (CKA),
            ``factor`` (sinks).

    Returns:
        One row per sample, modality, layer and metric: ``sample, image, modality, layer, metric,
        value, n_tokens`` (kept tokens) and ``note``: why a value is NaN, or what was left out.

    Raises:
        ValueError: Unknown metric, modality, sinks or variant; n0, draws or cka_gap out of range.
    """
    _check_names(modalities, ("image", "text"), "modalities")
    samples = list(getattr(task, "samples", task))
    settings = {"metrics": metrics, "n0": n0, "draws": draws, "seed": seed}
    settings |= {"sinks": sinks, "cka_gap": cka_gap, **variants}

    def measure(block: list[Sample], _rows: int) -> list[pd.DataFrame]:
        enc = vlm.encode(block, with_reference=True)
        groups = {modality: enc.mask(modality) for modality in modalities}
        return [token_geometry(vlm, enc, groups, **settings)]

    return tables(samples, batch_size, measure, progress)


def tables(
    samples: list[Sample],
    batch_size: int,
    measure: Callable[[list[Sample], int], list[pd.DataFrame]],
    progress: Progress | None,
) -> pd.DataFrame:
    """Measure samples in batches, halved when memory runs out, and join the tables."""
    if not samples:
        return pd.DataFrame(columns=list(COLUMNS))
    found = batching.in_blocks(samples, 1, batch_size, measure, progress, "geometry")
    return pd.concat(found, ignore_index=True)


def token_geometry(
    vlm: VLM,
    enc: Encoded,
    groups: dict[str, torch.Tensor],
    *,
    metrics: Sequence[str] = METRICS,
    n0: int = 64,
    draws: int = 20,
    seed: int = 0,
    sinks: str = "drop",
    cka_gap: int = 2,
    **variants: Any,
) -> pd.DataFrame:
    """As ``layer_geometry``, for any groups of tokens of a batch that is encoded already.

    ``groups``: name, which stands in the column ``modality`` -> which tokens it holds, bool (B, S).
    Groups may overlap; sinks are judged by the median of their group. MemoryError where there is no
    room for the states of several samples.
    """
    options = _options(vlm, variants)
    _check_names(metrics, METRICS, "metrics")
    _check_names([sinks], ("drop", "keep"), "sinks")
    if not 1 <= cka_gap <= vlm.n_layers:
        raise ValueError(f"cka_gap={cka_gap} must be 1..{vlm.n_layers}, the layers of {vlm.name}")
    states, places = _states(vlm, enc, torch.stack(list(groups.values())).any(0))
    norms = states.norm(dim=-1).cpu().numpy() if sinks == "drop" else None
    masks = {name: mask.cpu().numpy() for name, mask in groups.items()}
    rows: list[tuple] = []
    for b, sample in enumerate(enc.samples):
        for name, mask in masks.items():
            where = places[b, mask[b]]
            n_sinks = 0
            if norms is not None and len(where):
                sink = sink_mask(norms[:, where], **options["sinks"])
                where, n_sinks = where[~sink], int(sink.sum())
            head, n = (sample.id, sample.image_id, name), len(where)
            subsets = token_draws(n, n0, draws, (sample.id, name, seed))
            track = Track(head, n, subsets, n0, n_sinks, metrics, cka_gap, options)
            if n:
                track.measure(states[:, where])
            else:
                track.nothing(vlm.n_layers)
            rows += track.rows
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


def _states(vlm: VLM, enc: Encoded, mask: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """States (L+1, M, D) of the batch's M tokens in the mask, and where each stands in them."""
    on_host = mask.cpu().numpy()
    places = on_host.cumsum().reshape(on_host.shape) - 1
    kept: torch.Tensor | None = None
    flat = torch.from_numpy(np.flatnonzero(on_host)).to(mask.device)

    def visitor(layer: int, state: torch.Tensor) -> None:
        nonlocal kept
        if kept is None:
            shape = (vlm.n_layers + 1, len(flat), state.shape[-1])
            need = 4 * math.prod(shape)
            if len(state) > 1 and need > batching.SHARE_OF_FREE * batching.free_bytes(state.device):
                raise MemoryError(f"not enough memory for {need / 1e9:.1f} GB of states")
            kept = state.new_empty(shape)
        # A copy: a family may write into the tensor later.
        torch.index_select(state.flatten(0, 1), 0, flat, out=kept[layer])

    capture(vlm, enc, visitor)
    return kept, places
