"""Truncation and freezing that really leave the image rows out, so that what is saved is measured.

The sweeps ask "what if" and compute every depth at once; they save nothing. Here the rows leave the
hidden states at the cut, and the KV cache too unless they are frozen, in the prefill and while
decoding.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from transformers import DynamicCache

from visdepth_utils.measure.interventions import edited
from visdepth_utils.measure.patching.branches import check_depths, image_spans
from visdepth_utils.measure.patching.rerun import GotKeys, OnlyKeys
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.hooks import rotary_positions
from visdepth_utils.models.parts import check_rope, mask_for, refuse_unmaskable, scores, window
from visdepth_utils.models.vlm import VLM


@contextlib.contextmanager
def truncated_physically(
    vlm: VLM, enc: Encoded, depth: int, mode: str = "remove", stay: torch.Tensor | None = None
) -> Iterator[None]:
    """From layer ``depth`` on, image rows leave the hidden states, positions kept.

    ``depth`` is in 0..L. With ``"remove"`` the rows leave the KV cache too; with ``"freeze"`` later
    layers make keys and values of their state at ``depth``, and nothing else. ``stay``, bool (S,),
    are image tokens that are neither removed nor frozen. Decode with ``greedy``: the model's own
    ``generate`` supposes that all layers hold equally many keys.

    Raises:
        ValueError: See ``check_depths``; padding, or samples that differ in where their image
            tokens stand (one sample at a time always works).
    """
    refuse_unmaskable(vlm)
    image_spans(enc)
    check_depths(vlm, [depth], mode)
    if stay is not None:  # rows that stay would lose features that a family adds later
        check_depths(vlm, [depth], "freeze")
    if mode == "renumber":
        raise ValueError("mode 'renumber' is for masks only: use 'remove' or 'freeze'")
    leave = enc.is_image[0] if stay is None else enc.is_image[0] & ~stay
    keep, gone = ((~leave).nonzero()[:, 0], leave.nonzero()[:, 0])
    # Which tokens a layer above the cut holds, in the order of its cache.
    held = torch.cat([gone, keep]) if mode == "freeze" else keep
    n = enc.is_image.shape[1]
    frozen: dict[str, torch.Tensor] = {}
    if bool((enc.is_image != enc.is_image[0]).any()) or not enc.inputs["attention_mask"].all():
        raise ValueError(
            "rows can be dropped only where image tokens stand at the same places in all samples, "
            "without padding: run one sample at a time"
        )

    def edit(layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        if layer < depth:
            return hidden
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length(layer)
        if past == 0:
            whole = dict(kwargs)
            if hidden.shape[1] == n:
                frozen["state"] = hidden[:, gone]
                hidden = hidden[:, keep]
            kwargs |= _rows(kwargs, keep)
            if mode == "freeze":
                cache = DynamicCache() if cache is None else cache
                kwargs["past_key_values"] = cache
                _add_keys(vlm, layer, frozen["state"], _rows(whole, gone), cache)
                if whole.get("attention_mask") is None:
                    allowed = (keep[:, None] >= held).expand(len(hidden), -1, -1)
                    kwargs["attention_mask"] = mask_for(vlm, allowed, hidden.dtype)
            if whole.get("attention_mask") is not None:
                kwargs["attention_mask"] = whole["attention_mask"][:, :, keep][..., held]
            return hidden
        # What the decoder passes fits its first layer's length, not this one's.
        later = torch.arange(n, n + past + hidden.shape[1] - len(held), device=hidden.device)
        keys = torch.cat([held, later])
        queries = later[-hidden.shape[1] :]
        allowed = queries[:, None] >= keys
        size = window(vlm, layer)
        if size is not None:
            allowed &= queries[:, None] - keys < size
        allowed = allowed.expand(len(hidden), -1, -1)
        kwargs["attention_mask"] = None if allowed.all() else mask_for(vlm, allowed, hidden.dtype)
        return hidden

    def fewer_features(_module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        # DeepStack adds features to image rows after the first layers: not to rows that are gone.
        if kwargs.get("deepstack_visual_embeds") is not None:
            features = list(kwargs["deepstack_visual_embeds"])[:depth]
            kwargs = {**kwargs, "deepstack_visual_embeds": features}
        return args, kwargs

    decoder = vlm.model.get_decoder()
    with decoder.register_forward_pre_hook(fewer_features, with_kwargs=True), edited(vlm, edit):
        yield


@torch.no_grad()
def greedy(
    vlm: VLM,
    enc: Encoded,
    depth: int,
    max_new_tokens: int,
    stop: Sequence[int] = (),
    mode: str = "remove",
) -> tuple[list[int], torch.Tensor, DynamicCache]:
    """Answer one sample with the image gone from layer ``depth`` on.

    Gives token ids with the one of ``stop`` that ended them, fp32 logits (V,) of the first, and the
    cache. ValueError for more than one sample; else see ``truncated_physically``.
    """
    if len(enc.is_image) != 1:
        raise ValueError(f"{len(enc.is_image)} samples: rows are dropped one sample at a time")
    check_rope(vlm, enc, max_new_tokens)
    embed = vlm.model.get_input_embeddings()
    cache = DynamicCache()  # without a config: sliding layers must keep all keys
    with truncated_physically(vlm, enc, depth, mode), rotary_positions(vlm) as positions:
        out = vlm.model(**enc.inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        first = out.logits[0, -1].float()
        ids = [int(first.argmax())]
        while ids[-1] not in stop and len(ids) < max_new_tokens:
            token = embed(torch.tensor([ids[-1:]], device=vlm.device))
            logits = decoder_step(vlm, token, positions[0][..., -1:] + len(ids), cache)
            ids.append(int(logits.argmax()))
    return ids, first, cache


def _rows(kwargs: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Where some tokens stand, as a layer takes it."""
    cos, sin = kwargs["position_embeddings"]
    out = {"position_embeddings": (cos[..., rows, :], sin[..., rows, :])}
    if kwargs.get("position_ids") is not None:
        out["position_ids"] = kwargs["position_ids"][..., rows]
    return out


def _add_keys(
    vlm: VLM, layer: int, state: torch.Tensor, places: dict[str, Any], cache: DynamicCache
) -> None:
    """Put keys and values that a layer makes of states (B, M, D) into its cache; no queries."""
    module, stop = vlm.layers[layer], OnlyKeys(None, None)
    query = getattr(module.self_attn, "q_proj", None)  # where it is one map with the keys', it runs
    with contextlib.ExitStack() as stack:
        if query is not None:
            none = state.new_zeros(()).expand(*state.shape[:2], query.out_features)
            stack.enter_context(mock.patch.object(query, "forward", lambda _state: none))
        stack.enter_context(contextlib.suppress(GotKeys))
        module.forward(state, attention_mask=None, past_key_values=stop, use_cache=True, **places)
    cache.update(*stop.new, layer)


def decoder_step(
    vlm: VLM, embedded: torch.Tensor, positions: torch.Tensor, cache: DynamicCache
) -> torch.Tensor:
    """Logits (V,) of the last of T embedded tokens (1, T, D); the cache grows by T.

    Decoder and head run, the vision tower does not. ``positions`` are (..., 1, T).
    """
    out = vlm.model.get_decoder()(
        inputs_embeds=embedded, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return scores(vlm, out.last_hidden_state[0, -1])


def held_bytes(cache: DynamicCache) -> int:
    """Bytes of memory that the keys and values of all layers occupy."""
    parts = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum(part.untyped_storage().nbytes() for part in parts)
