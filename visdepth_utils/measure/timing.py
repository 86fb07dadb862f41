"""Time and memory by depth, measured with the image rows really dropped.

Only the decoder is timed: the vision tower costs the same at every depth (``tower_share`` tells how
much). What the rows hold does not matter for time, so any number of image tokens can be tried on
any decoder, a model's own included. Times of one machine say little on another; what is compared
are ratios to the whole model in the same repetition, all depths in turns.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import DynamicCache

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import Sample
from visdepth_utils.measure.patching.branches import check_depths
from visdepth_utils.measure.physical import decoder_step, held_bytes, truncated_physically
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.vlm import VLM


def rows_of(vlm: VLM, image_tokens: int, other_tokens: int) -> Encoded:
    """One prompt of so many rows, half of the others before the image; it holds no tokens.

    ValueError: no image token, or fewer than two others (one must stand after the image).
    """
    if image_tokens < 1 or other_tokens < 2:
        raise ValueError(
            f"{image_tokens} image and {other_tokens} other tokens: give at least 1 and 2"
        )
    is_image = torch.zeros(1, image_tokens + other_tokens, dtype=torch.bool, device=vlm.device)
    is_image[:, other_tokens // 2 : other_tokens // 2 + image_tokens] = True
    mask = torch.ones_like(is_image, dtype=torch.long)
    return Encoded({"attention_mask": mask}, is_image, ~is_image, ())


def time_by_depth(
    vlm: VLM,
    image_tokens: int,
    other_tokens: int,
    depths: str | Sequence[int] = "all",
    *,
    mode: str = "remove",
    share: float = 0.0,
    repeats: int = 9,
    new_tokens: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Time prefill and decoding of one prompt at each depth, rows really dropped or frozen.

    Each repetition runs every depth (``"all"`` or numbers in 0..L) once and the whole model twice,
    in an order drawn anew. Before the first, the smallest depth and the whole model run once
    without being counted. Half of ``other_tokens`` stand before the image; ``mode`` is ``"remove"``
    or ``"freeze"``; ``share`` of the image rows stay (which do not matter for time: the first);
    ``new_tokens`` are steps of decoding; the seed is that of the rows and the order.

    Returns:
        One row per repetition and depth: ``decoder, image_tokens, other_tokens, repetition, depth,
        again`` (the second run of the whole model), ``prefill_s`` (decoder and head, seconds),
        ``decode_s`` (a step, median over new_tokens), ``kv_bytes`` (held after the prefill),
        ``device, dtype, threads``.

    Raises:
        ValueError: See ``rows_of`` and ``check_depths``; fewer than one repetition or new token.
    """
    if repeats < 1 or new_tokens < 1:
        raise ValueError(f"{repeats} repetitions of {new_tokens} tokens: give at least 1 of each")
    enc = rows_of(vlm, image_tokens, other_tokens)
    asked = sorted({*check_depths(vlm, depths, mode), vlm.n_layers})
    first = int(enc.is_image[0].long().argmax())
    stay = torch.zeros_like(enc.is_image[0])
    stay[first : first + round(share * image_tokens)] = True
    cut = {"mode": mode, "stay": stay if share else None}
    runs = [(depth, False) for depth in asked] + [(vlm.n_layers, True)]
    embed, rng = vlm.model.get_input_embeddings(), np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, embed.weight.shape[0], enc.is_image.shape[1]))
    with torch.no_grad():
        embedded = embed(ids.to(vlm.device))[None]
    cuda = vlm.device.type == "cuda"
    device = torch.cuda.get_device_name(vlm.device) if cuda else str(vlm.device)
    facts = {"decoder": vlm.name, "image_tokens": image_tokens, "other_tokens": other_tokens}
    facts |= {"device": device, "dtype": str(vlm.dtype).removeprefix("torch.")}
    facts["threads"] = torch.get_num_threads()
    for depth in {asked[0], vlm.n_layers}:
        _once(vlm, enc, embedded, depth, 1, cut)
    rows = []
    for repetition in range(repeats):
        for i in rng.permutation(len(runs)):
            depth, again = runs[i]
            found = _once(vlm, enc, embedded, depth, new_tokens, cut)
            rows.append({"repetition": repetition, "depth": depth, "again": again, **found})
        if progress:
            progress(repetition + 1, repeats, f"{image_tokens} image tokens")
    return pd.DataFrame(rows).assign(**facts).sort_values(["repetition", "depth", "again"])


@torch.no_grad()
def _once(
    vlm: VLM, enc: Encoded, embedded: torch.Tensor, depth: int, new_tokens: int, cut: dict[str, Any]
) -> dict[str, Any]:
    """One prefill and some steps after it."""
    cache, n = DynamicCache(), embedded.shape[1]
    places = torch.arange(n + new_tokens, device=vlm.device)[None]
    steps = []
    with truncated_physically(vlm, enc, depth, **cut):
        start = _now(vlm.device)
        decoder_step(vlm, embedded, places[:, :n], cache)
        prefill = _now(vlm.device) - start
        held = held_bytes(cache)
        for k in range(new_tokens):
            start = _now(vlm.device)
            decoder_step(vlm, embedded[:, -1:], places[:, n + k : n + k + 1], cache)
            steps.append(_now(vlm.device) - start)
    return {"prefill_s": prefill, "decode_s": statistics.median(steps), "kv_bytes": held}


@torch.no_grad()
def tower_share(vlm: VLM, sample: Sample, repeats: int = 5) -> float:
    """Share (0..1) of a whole prefill that passes before the decoder starts, median of ``repeats``.

    That is vision tower and projector; no depth saves it.
    """
    enc, started = vlm.encode([sample]), []

    def before(*_args: Any) -> None:
        started.append(_now(vlm.device))

    shares = []
    with vlm.model.get_decoder().register_forward_pre_hook(before):
        for _ in range(repeats + 1):
            start = _now(vlm.device)
            vlm.model(**enc.inputs, use_cache=True, logits_to_keep=1)
            shares.append((started[-1] - start) / (_now(vlm.device) - start))
    return statistics.median(shares[1:])


def _now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
