"""One call of a model's own decoder layer, with keys of ours in the place of its KV cache."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from visdepth_utils.measure.patching.prefill import Prefill
from visdepth_utils.models.parts import Angles, mask_for

__all__ = ["Splice", "keys_of", "run_layer"]


class Splice:
    """Stands where a layer expects its KV cache: earlier keys first, new ones after them."""

    def __init__(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """Earlier keys and values (N, H, P, head size), or none."""
        self.before = (keys, values)
        self.new: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the attention: take its new keys and values, return all it may read."""
        self.new = (keys, values)
        if self.before[0] is None:
            return keys, values
        return torch.cat([self.before[0], keys], 2), torch.cat([self.before[1], values], 2)


class _GotThem(Exception):
    """Ends a layer's call when its keys and values are there."""


class _Keys(Splice):
    """Takes keys and values and stops the layer before it attends."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
        self.new = (keys, values)
        raise _GotThem


def run_layer(
    pre: Prefill,
    layer: int,
    hidden: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    angles: Angles,
    positions: torch.Tensor | None,
    cache: Any,
) -> torch.Tensor:
    """Call the model's own decoder layer on (N, T, D); mask bool (N, T, keys), None for causal."""
    out = pre.vlm.layers[layer](
        hidden,
        attention_mask=None if mask is None else mask_for(pre.vlm, mask, hidden.dtype),
        position_embeddings=angles,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **pre.extra[layer],
    )
    return (out[0] if isinstance(out, tuple) else out).to(hidden.device)


def keys_of(
    pre: Prefill, layer: int, hidden: torch.Tensor, places: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (N, H, T, head size) that a layer makes of states; nothing is attended."""
    cache = _Keys(None, None)
    unused = torch.ones(1, 1, 1, dtype=torch.bool, device=hidden.device)
    with contextlib.suppress(_GotThem):
        run_layer(pre, layer, hidden, mask=unused, **places, cache=cache)
    return cache.new
