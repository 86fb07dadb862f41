"""Stream the states of every decoder layer to a visitor, by hooks that are always removed.

State l is what layer l receives; state L is what the last layer returns, before the final norm.
Neither is ``output_hidden_states``: its last entry is normed, and in families that add visual
features between layers its others are not what the next layer receives.

NaN and infinity end a measurement in one line that names the layer they come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from visdepth_utils.models.encoding import Encoded
    from visdepth_utils.models.vlm import VLM

Visitor = Callable[[int, torch.Tensor], None]
"""Called with (l, state): l in 0..L, state fp32 (B, S, D). It must not write to the state."""


@contextlib.contextmanager
def hooked(vlm: VLM, visitor: Visitor) -> Iterator[None]:
    """Within the context every forward pass of the model shows its L+1 states to the visitor.

    It is called as the states appear; nothing is kept for it. In fp32 it sees the model's own
    tensor, not a copy. The hooks go when the context ends, however it ends.
    """

    def before(index: int, _module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        state = args[0] if args else kwargs["hidden_states"]
        visitor(index, state.detach().to(vlm.device).float())

    def after_last(_module: torch.nn.Module, _args: tuple, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        visitor(vlm.n_layers, state.detach().to(vlm.device).float())

    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(vlm.layers):
            hook = partial(before, index)
            stack.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        stack.enter_context(vlm.layers[-1].register_forward_hook(after_last))
        yield


@contextlib.contextmanager
def rotary_positions(vlm: VLM) -> Iterator[list[torch.Tensor]]:
    """Within the context, a list that grows by the position ids each pass gives to the rotary."""
    positions: list[torch.Tensor] = []

    def before(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        positions.append(args[1] if len(args) > 1 else kwargs["position_ids"])

    rotary = vlm.model.get_decoder().rotary_emb
    with rotary.register_forward_pre_hook(before, with_kwargs=True):
        yield positions


@torch.no_grad()
def capture(vlm: VLM, enc: Encoded, visitor: Visitor, logits_to_keep: int = 1) -> torch.Tensor:
    """One forward pass that shows its L+1 states in order to the visitor.

    Each comes as (l, state (B, S, D) in fp32). Gives logits (B, logits_to_keep, vocabulary), those
    of the last positions; 0 keeps all. ValueError: NaN or infinity; names the layer.
    """
    with hooked(vlm, visitor):
        logits = vlm.model(**enc.inputs, use_cache=False, logits_to_keep=logits_to_keep).logits
    refuse_nan(vlm, enc, logits)
    return logits


def refuse_nan(vlm: VLM, enc: Encoded, logits: torch.Tensor) -> None:
    """Stop if a pass of left-padded samples gave logits (B, V) or (B, n, V) that are no numbers.

    ValueError names model, sample, layer and, if it is their fault, the weights.
    """
    last = logits if logits.ndim == 2 else logits[:, -1]
    bad = ~torch.isfinite(last).all(-1)
    if bad.any():
        raise ValueError(f"{vlm.name}: {explain(vlm, enc, int(bad.nonzero()[0, 0]))}")


@torch.no_grad()
def explain(vlm: VLM, enc: Encoded, row: int) -> str:
    """One line: the first layer with a state that is not finite, whose weights, what to do."""
    attended = enc.inputs["attention_mask"][row].bool()
    first: list[int] = []

    def visitor(layer: int, state: torch.Tensor) -> None:
        if not first and not torch.isfinite(state[row, attended.to(state.device)]).all():
            first.append(layer)

    with hooked(vlm, visitor):
        vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1)
    # State l is what layer l receives, so that layer l - 1 made it.
    where = f"decoder layer {first[0] - 1} makes" if first else "the output head makes"
    where = "embedding, vision tower or projector makes" if first == [0] else where
    broken = [
        name
        for name, weight in vlm.model.named_parameters()
        if weight.is_floating_point() and not torch.isfinite(weight).all()
    ]
    sample = enc.samples[row].id
    if broken:
        more = f" and {len(broken) - 1} more" if broken[1:] else ""
        cause = f"its weights {broken[0]}{more} are broken: fetch the checkpoint again"
    else:
        cause = f"its weights are finite, so {vlm.dtype} is too narrow: use dtype='float32'"
    return f"{where} NaN or infinity of sample {sample!r}; {cause}"
