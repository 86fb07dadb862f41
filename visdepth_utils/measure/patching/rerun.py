"""Run part of a pass again: many rows that leave one plain pass, each at its own layer.

A row is one "what if": the same samples, with some states replaced or some keys gone from layer
``start`` on. Below that layer it *is* the plain pass. From there on only its changed tokens run;
what came before them in the sequence is read from the plain pass's keys and values. At layer l one
call serves all rows that have started, so weights are read once per layer, not once per row.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from visdepth_utils.measure.patching.branches import Branches, hidden_from, row_mask
from visdepth_utils.measure.patching.prefill import Index, Prefill
from visdepth_utils.models.parts import Angles, head, mask_for, rotary_angles


@dataclass(frozen=True, eq=False)
class Rerun:
    """The outcome of a rerun.

    ``states`` (B, R, T', D): the last T' of the moved tokens after the last layer. ``keys`` and
    ``values``: per layer (B, n, H, M + T, head size) of the n rows started by then, frozen tokens
    first; empty if not kept.
    """

    rows: Branches
    states: torch.Tensor
    keys: list[torch.Tensor | None] = field(default_factory=list)
    values: list[torch.Tensor | None] = field(default_factory=list)


@torch.no_grad()
def rerun(pre: Prefill, rows: Branches, keep_cache: bool = True, tail: int = 1) -> Rerun:
    """Run the moved tokens of all rows through the layers above their starts.

    Starts must not decrease (ValueError). Decoding needs ``keep_cache``: the new keys and values.
    ``tail`` is how many of the last tokens are wanted after the last layer; for the others that
    layer makes keys and values only.
    """
    starts = list(rows.starts)
    if starts != sorted(starts):
        raise ValueError(f"starts {starts} decrease: sort the rows by layer")
    n_samples, width = rows.moved.at.shape
    n_layers = pre.vlm.n_layers
    hidden: torch.Tensor | None = None
    frozen: torch.Tensor | None = None
    out = Rerun(rows, torch.empty(0))
    for layer in range(n_layers + 1):
        new = [row for row, start in enumerate(starts) if start == layer]
        if new:
            short = tail if layer == n_layers else width
            hidden = _append(hidden, [rows.initial(row)[:, -short:] for row in new])
            if rows.frozen is not None:
                frozen = _append(frozen, [rows.frozen_state(row) for row in new])
        if layer == n_layers:
            break
        if hidden is None:
            out.keys.append(None)
            out.values.append(None)
            continue
        still = None if frozen is None else _frozen_keys(pre, rows, layer, frozen)
        wanted = min(tail, width) if layer == n_layers - 1 else width
        hidden, own = _layer(pre, rows, layer, hidden, still, wanted)
        added = pre.addition(layer, rows.moved)
        if added is not None:
            hidden = hidden + added[:, None]
        if keep_cache:
            for kept, new, old in zip(
                (out.keys, out.values), own, still or (None, None), strict=True
            ):
                old = None if old is None else old.unflatten(0, (n_samples, -1))
                kept.append(new if old is None else torch.cat([old, new], 3))
    return Rerun(rows, hidden, out.keys, out.values)


def next_logits(pre: Prefill, done: Rerun) -> torch.Tensor:
    """fp32 (B, R, V) at the last token; a row that never starts gets the plain pass's own."""
    logits = head(pre.vlm, done.states[:, :, -1])
    plain = torch.tensor(
        [start == pre.vlm.n_layers for start in done.rows.starts], device=logits.device
    )
    return torch.where(plain[None, :, None], pre.logits[:, None], logits)


def _layer(
    pre: Prefill,
    rows: Branches,
    layer: int,
    hidden: torch.Tensor,
    still: tuple[torch.Tensor, torch.Tensor] | None,
    wanted: int,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """One layer on the moved tokens (B, n, T, D) of n rows.

    Where many keys of the plain pass are read by few tokens, several rows stand side by side on the
    sequence axis and share one copy of those keys; a mask keeps the rows apart. Gives states (B, n,
    wanted, D) of the last tokens; keys and values (B, n, H, T, head size) of all.
    """
    n_samples, n, width = hidden.shape[:3]
    n_context = len(rows.context)
    together = still is None and rows.hiding is None
    most = max(1, n_context // (2 * width)) if together else 1
    groups = -(-n // most)
    side = -(-n // groups)  # rows side by side; the last group may be filled up with empty ones
    filled = groups * side - n
    packed = torch.nn.functional.pad(hidden, (0, 0, 0, 0, 0, filled)) if filled else hidden
    packed = packed.reshape(n_samples * groups, side * width, -1)
    before = _context(pre, rows, layer, groups, still)
    places = _places(pre, layer, rows.moved, groups, rows.closed, side)
    mask = row_mask(pre, rows, layer)[:, -wanted:]
    if rows.hiding is None:
        apart = _repeat(_apart(mask, side, n_context), groups)
    else:
        apart = (mask[:, None] & ~hidden_from(rows, layer, n)[:, :, -wanted:]).flatten(0, 1)
    if wanted == width:
        cache = Splice(*before)
        apart = None if _just_causal(pre, rows, layer) else apart
        after = run_layer(pre, layer, packed, mask=apart, **places, cache=cache)
        own = cache.new
    else:
        own = keys_of(pre, layer, packed, places)
        # The last tokens' keys come twice, from both calls; those of the second are not read.
        cache = Splice(*before)
        cache.before = cache.update(*own)
        apart = torch.nn.functional.pad(apart, (0, side * wanted))
        last = Index(rows.moved.at[:, -wanted:], rows.moved.valid[:, -wanted:])
        after = run_layer(
            pre,
            layer,
            packed.unflatten(1, (side, width))[:, :, -wanted:].flatten(1, 2),
            mask=apart,
            **_places(pre, layer, last, groups, rows.closed, side),
            cache=cache,
        )
    states = after.reshape(n_samples, groups * side, wanted, -1)[:, :n]
    keys, values = (
        part.unflatten(2, (side, width)).transpose(1, 2).unflatten(0, (n_samples, groups))
        for part in own
    )
    return states, (keys.flatten(1, 2)[:, :n], values.flatten(1, 2)[:, :n])


def _apart(mask: torch.Tensor, side: int, n_context: int) -> torch.Tensor:
    """A row's mask (B, q, C + T) for ``side`` rows that share C: (B, side * q, C + side * T)."""
    if side == 1:
        return mask
    shared, own = mask[..., :n_context], mask[..., n_context:]
    same = torch.eye(side, dtype=torch.bool, device=mask.device)
    blocks = own[:, None, :, None, :] & same[None, :, None, :, None]
    return torch.cat([shared.repeat(1, side, 1), blocks.flatten(3, 4).flatten(1, 2)], 2)


def _just_causal(pre: Prefill, rows: Branches, layer: int) -> bool:
    """Whether whole unpadded sequences run again with no mask: that has a faster kernel."""
    alone = not len(rows.context) and not (rows.frozen or rows.hiding) and rows.closed is None
    whole = len(rows.moved) == pre.attended.shape[1] and bool(pre.attended.all())
    return alone and whole and pre.causal[layer]


def _append(stack: torch.Tensor | None, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, n, T, D) and m times (B, T, D) -> (B, n + m, T, D), copied once."""
    more = [row[:, None] for row in rows]
    return torch.cat(more if stack is None else [stack, *more], 1)


def _repeat(values: torch.Tensor, n: int) -> torch.Tensor:
    """(B, ...) -> (B * n, ...), every sample n times in a row, without a copy where possible."""
    return values[:, None].expand(-1, n, *values.shape[1:]).flatten(0, 1)


def _places(
    pre: Prefill, layer: int, tokens: Index, n: int, closed: torch.Tensor | None, side: int = 1
) -> dict[str, Any]:
    """Where tokens stand, for n times ``side`` rows of each sample: ``angles``, ``positions``."""
    positions, angles, n_samples = pre.layer_positions, pre.angles[layer], len(tokens.at)
    if closed is not None:
        spread = closed.expand(*pre.positions.shape[:-2], *closed.shape)
        angles = rotary_angles(pre.vlm, spread, layer, pre.states[0])
        positions = None if positions is None else closed
    chosen = [tokens.take(part.expand(n_samples, -1, -1)).repeat(1, side, 1) for part in angles]
    if positions is not None:
        positions = _repeat(tokens.take(positions.expand(n_samples, -1)).repeat(1, side), n)
    return {"angles": tuple(_repeat(part, n) for part in chosen), "positions": positions}


def _context(
    pre: Prefill,
    rows: Branches,
    layer: int,
    n: int,
    still: tuple[torch.Tensor, torch.Tensor] | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Keys and values that n rows read besides their own: plain context, then frozen tokens."""
    parts = []
    for which, plain in enumerate((pre.keys[layer], pre.values[layer])):
        found = [_repeat(rows.context.take(plain, 2), n)] if len(rows.context) else []
        if still is not None:
            found.append(still[which])
        parts.append(torch.cat(found, 2) if found else None)
    return parts[0], parts[1]


def _frozen_keys(
    pre: Prefill, rows: Branches, layer: int, frozen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that this layer makes of frozen states (B, n, M, D)."""
    places = _places(pre, layer, rows.frozen, frozen.shape[1], None)
    return keys_of(pre, layer, frozen.flatten(0, 1), places)


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


class GotKeys(Exception):
    """Ends a layer's call when its keys and values are there."""


class OnlyKeys(Splice):
    """Takes keys and values and stops the layer before it attends."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any) -> None:
        """Called by the attention: take its new keys and values and stop."""
        self.new = (keys, values)
        raise GotKeys


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
    cache = OnlyKeys(None, None)
    unused = torch.ones(1, 1, 1, dtype=torch.bool, device=hidden.device)
    with contextlib.suppress(GotKeys):
        run_layer(pre, layer, hidden, mask=unused, **places, cache=cache)
    return cache.new
