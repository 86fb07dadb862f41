"""Parts of a decoder, called by hand as the model calls them: embedding, masks, rotary, head."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from visdepth_utils.vlm import VLM


Angles = tuple[torch.Tensor, torch.Tensor]
"""cos and sin of the rotary embedding, each (B, T, head size)."""


def refuse_unmaskable(vlm: VLM) -> None:
    """Say no where hiding keys layer by layer is impossible.

    Raises:
        ValueError: Names the model and the reason.
    """
    kind = vlm.model.get_decoder().config._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise ValueError(
            f"{vlm.name} runs {kind!r} attention, which takes no mask per layer: "
            "load it with attn='sdpa' or attn='eager'"
        )
    if vlm.family.linear_attention:
        raise ValueError(
            f"{vlm.name}: layers with linear attention ({vlm.family.model_type}) keep no keys and "
            "values that could be hidden or replaced: interventions are not exact there"
        )


def head(vlm: VLM, state: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) in fp32 of states (..., D) that come out of the last layer."""
    logits = vlm.model.get_output_embeddings()(vlm.model.get_decoder().norm(state))
    return logits.to(state.device).float()


def embed(vlm: VLM, ids: torch.Tensor) -> torch.Tensor:
    """What the decoder takes for token ids, (..., D)."""
    return vlm.model.get_input_embeddings()(ids).to(ids.device)


def mask_for(vlm: VLM, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask (N, T, K) in the form that the model's attention takes, (N, 1, T, K)."""
    if vlm.model.get_decoder().config._attn_implementation == "sdpa":
        return allowed[:, None]
    shut = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=allowed.device)
    return torch.where(allowed[:, None], torch.zeros_like(shut), shut)


def window(vlm: VLM, layer: int) -> int | None:
    """How many tokens back a sliding layer looks; None for full attention."""
    config = vlm.model.get_decoder().config
    kinds = getattr(config, "layer_types", None)
    size = getattr(config, "sliding_window", None)
    return size if kinds is None or kinds[layer] == "sliding_attention" else None


def rotary_angles(vlm: VLM, positions: torch.Tensor, layer: int, like: torch.Tensor) -> Angles:
    """Rotary embedding of position ids (..., B, T) as this layer would get it."""
    rotary = vlm.model.get_decoder().rotary_emb
    kind = ()
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        kind = (vlm.model.get_decoder().config.layer_types[layer],)
    cos, sin = rotary(like, positions, *kind)
    return cos.to(like.device), sin.to(like.device)
