"""Parts of a decoder, called by hand as the model calls them: embedding, masks, rotary, head."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

if TYPE_CHECKING:
    from visdepth_utils.models.encoding import Encoded
    from visdepth_utils.models.vlm import VLM


Angles = tuple[torch.Tensor, torch.Tensor]
"""cos and sin of the rotary embedding, each (B, T, head size)."""

_KEYED = {"full_attention", "sliding_attention"}
_NORMS = ("norm", "final_layernorm", "final_layer_norm", "embedding_norm")
"""What text backbones call the norm after their last layer."""


def refuse_unmaskable(vlm: VLM) -> None:
    """Say no, by a ValueError with the reason, where hiding keys layer by layer is impossible."""
    decoder = vlm.model.get_decoder()
    kind = decoder.config._attn_implementation
    if kind not in ("sdpa", "eager"):
        raise ValueError(
            f"{vlm.name} runs {kind!r} attention, which takes no mask per layer: "
            "load it with attn='sdpa' or attn='eager'"
        )
    if others := unkeyed(vlm):
        raise ValueError(
            f"{vlm.name}: its layers of {' and '.join(others)} keep no keys and values of "
            "single tokens that could be hidden or replaced: interventions are not exact there"
        )
    takes = inspect.signature(vlm.layers[0].forward).parameters
    lacking = [
        *(name for name in ("past_key_values", "position_embeddings") if name not in takes),
        *(["rotary_emb"] if not hasattr(decoder, "rotary_emb") else []),
        *(["a final norm"] if _norm(vlm) is None else []),
    ]
    if lacking:
        raise ValueError(
            f"{vlm.name}: its text backbone {decoder.config.model_type!r} has no "
            f"{' and no '.join(lacking)}, by which interventions reach it: give a model whose "
            "text_config is of another model_type, e.g. llama, mistral, qwen2 or gemma"
        )


def unkeyed(vlm: VLM) -> list[str]:
    """Kinds of layers in which the keys of single tokens cannot be hidden or replaced."""
    return sorted(set(getattr(vlm.model.get_decoder().config, "layer_types", None) or ()) - _KEYED)


def check_rope(vlm: VLM, enc: Encoded, more: int = 0) -> None:
    """Refuse lengths at which rotary angles depend on what else is in the batch.

    ``more`` tokens will follow. ValueError names the longest sample and the length that is left as
    trained.
    """
    config = vlm.model.config.get_text_config()
    given = getattr(config, "rope_parameters", None) or {}
    for rope in given.values() if "rope_type" not in given else [given]:
        kind = rope.get("rope_type") if isinstance(rope, dict) else None
        if kind not in ("dynamic", "longrope"):
            continue
        most = config.max_position_embeddings
        most = min(most, rope.get("original_max_position_embeddings") or most)
        lengths = enc.inputs["attention_mask"].sum(-1)
        longest = int(lengths.argmax())
        if int(lengths[longest]) + more > most:
            name = enc.samples[longest].id if enc.samples else f"number {longest}"
            raise ValueError(
                f"sample {name!r} takes {int(lengths[longest])} tokens, and {more} may follow: "
                f"beyond {most}, {kind} rotary positions of {vlm.name} depend on batch and step; "
                "give smaller images, a shorter prompt or a smaller budget"
            )


def head(vlm: VLM, state: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) in fp32 of states (..., D) that come out of the last layer."""
    return scores(vlm, _norm(vlm)(state))


def scores(vlm: VLM, normed: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) in fp32 of normed states (..., D): the model's head and what follows."""
    found = _Found(normed.reshape(1, -1, normed.shape[-1]))
    # The model's own forward, with all before its head already done.
    with mock.patch.object(vlm.model.base_model, "forward", lambda *_args, **_kwargs: found):
        logits = vlm.model(inputs_embeds=found.last_hidden_state).logits
    return logits.view(*normed.shape[:-1], -1).to(normed.device).float()


class _Found:
    """What a model without head returns, with nothing in it but the states."""

    def __init__(self, states: torch.Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, _key: Any) -> torch.Tensor:
        return self.last_hidden_state

    def __getattr__(self, _name: str) -> None:
        return None


def _norm(vlm: VLM) -> torch.nn.Module | None:
    """The norm after the last layer."""
    found = (getattr(vlm.model.get_decoder(), name, None) for name in _NORMS)
    return next((norm for norm in found if norm is not None), None)


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
