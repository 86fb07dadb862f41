"""Stream the states of every decoder layer to a visitor, by hooks that are always removed.

State l is what layer l receives; state L is what the last layer returns, before the final norm.
Neither is ``output_hidden_states``: its last entry is normed, and in families that add visual
features between layers its others are not what the next layer receives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from visdepth_utils.encoding import Encoded
    from visdepth_utils.vlm import VLM

Visitor = Callable[[int, torch.Tensor], None]
"""Called with (l, state): l in 0..L, state fp32 (B, S, D). It must not write to the state."""


@contextlib.contextmanager
def hooked(vlm: VLM, visitor: Visitor) -> Iterator[None]:
    """Within the context every forward pass of the model shows its L+1 states to the visitor.

    Args:
        vlm: The model; it is not changed, and the hooks go when the context ends, however it ends.
        visitor: Called as the states appear; nothing is kept for it. In fp32 it sees the model's
            own tensor, not a copy.

    Yields:
        Nothing.
    """
    handles: list[Any] = []

    def before(index: int) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            state = args[0] if args else kwargs["hidden_states"]
            visitor(index, state.detach().to(vlm.device).float())

        return hook

    def after_last(_module: torch.nn.Module, _args: tuple, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        visitor(vlm.n_layers, state.detach().to(vlm.device).float())

    try:
        for index, layer in enumerate(vlm.layers):
            handles.append(layer.register_forward_pre_hook(before(index), with_kwargs=True))
        handles.append(vlm.layers[-1].register_forward_hook(after_last))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def capture(vlm: VLM, enc: Encoded, visitor: Visitor, logits_to_keep: int = 1) -> torch.Tensor:
    """One forward pass that shows its L+1 states to the visitor.

    Args:
        vlm: The model.
        enc: A batch.
        visitor: Called with (l, state (B, S, D) in fp32) for l = 0..L in order.
        logits_to_keep: For how many last positions to compute logits; 0 for all.

    Returns:
        Logits (B, logits_to_keep or S, vocabulary).

    Raises:
        ValueError: NaN or infinity; names the layer.
    """
    with hooked(vlm, visitor):
        logits = vlm.model(**enc.inputs, use_cache=False, logits_to_keep=logits_to_keep).logits
    from visdepth_utils.finite import refuse_nan  # it imports this module

    refuse_nan(vlm, enc, logits)
    return logits
