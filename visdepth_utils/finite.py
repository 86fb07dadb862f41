"""NaN and infinity end a measurement in one line that names the layer they come from.

Testing the logits of a pass costs next to nothing. Which layer was first is looked up only then, by
one more pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from visdepth_utils.capture import hooked

if TYPE_CHECKING:
    from visdepth_utils.encoding import Encoded
    from visdepth_utils.vlm import VLM


def refuse_nan(vlm: VLM, enc: Encoded, logits: torch.Tensor) -> None:
    """Stop if a forward pass gave something else than numbers.

    Args:
        vlm: The model.
        enc: The batch, left-padded.
        logits: Of the pass, of the last token or of the last tokens: (B, V) or (B, n, V).

    Raises:
        ValueError: Names model, sample, layer and, if it is their fault, the weights.
    """
    last = logits if logits.ndim == 2 else logits[:, -1]
    bad = ~torch.isfinite(last).all(-1)
    if bad.any():
        raise ValueError(f"{vlm.name}: {explain(vlm, enc, int(bad.nonzero()[0, 0]))}")


@torch.no_grad()
def explain(vlm: VLM, enc: Encoded, row: int) -> str:
    """Find the first layer with a state that is not finite.

    Args:
        vlm: The model.
        enc: The batch.
        row: The sample in it whose logits are not finite.

    Returns:
        One line: where, whose weights, what to do.
    """
    attended = enc.inputs["attention_mask"][row].bool()
    first: list[int] = []

    def visitor(layer: int, state: torch.Tensor) -> None:
        if not first and not torch.isfinite(state[row, attended.to(state.device)]).all():
            first.append(layer)

    with hooked(vlm, visitor):
        vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1)
    # State l is what layer l receives, so that layer l - 1 made it.
    if not first:
        where = "the output head makes"
    elif first[0] == 0:
        where = "embedding, vision tower or projector makes"
    else:
        where = f"decoder layer {first[0] - 1} makes"
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
