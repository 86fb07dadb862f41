"""What the rows of a replay are, and what their tokens may read and where they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from visdepth_utils.measure.patching.prefill import Index, Prefill
from visdepth_utils.models.parts import Angles, rotary_angles, window


@dataclass(frozen=True, eq=False)
class Rows:
    """R variants of a prefilled batch.

    Attributes:
        starts: Layer at which each row leaves the plain pass, not decreasing; L means never.
        moved: Tokens that run again; the sequence's last token is one of them.
        context: Tokens whose plain keys the moved ones may read. Tokens in none of ``moved``,
            ``context`` and ``frozen`` are gone.
        initial: Row number -> states (B, T, D) of the moved tokens going into layer ``starts``.
        frozen: Tokens that no longer run but stay readable.
        frozen_state: Row number -> their states (B, M, D), the same at all layers.
        closed: Position ids (B, S) from ``starts`` on; None keeps the plain ones. With them,
            sliding windows count tokens that are left.
    """

    starts: Sequence[int]
    moved: Index
    context: Index
    initial: Callable[[int], torch.Tensor]
    frozen: Index | None = None
    frozen_state: Callable[[int], torch.Tensor] | None = None
    closed: torch.Tensor | None = None


def row_mask(pre: Prefill, rows: Rows, layer: int) -> torch.Tensor:
    """Which moved token may read which key, bool (B, T, context + frozen + T)."""
    moved, groups = rows.moved, [rows.context, *([rows.frozen] if rows.frozen else []), rows.moved]
    by_query = moved.take(base_mask(pre, rows, layer), 1)
    parts = [g.take(by_query, 2) & g.valid[:, None] for g in groups]
    mask = torch.cat(parts, 2)
    # An empty slot reads itself, so that its softmax is over something; nobody reads it.
    own = torch.eye(len(moved), dtype=torch.bool, device=mask.device) & ~moved.valid[:, :, None]
    mask[:, :, mask.shape[2] - len(moved) :] |= own
    return mask


def base_mask(pre: Prefill, rows: Rows, layer: int) -> torch.Tensor:
    """The plain mask (B, S, S), with windows over the tokens that are left if positions closed."""
    size = window(pre.vlm, layer)
    if rows.closed is None or size is None:
        return pre.masks[layer]
    n = pre.attended.shape[1]
    rank = closed_rank(rows, n)
    causal = torch.ones(n, n, dtype=torch.bool, device=rank.device).tril()
    near = rank[:, :, None] - rank[:, None, :] < size
    return causal & near & pre.attended[:, None, :]


def closed_rank(rows: Rows, n: int) -> torch.Tensor:
    """(B, S): how many tokens that are left stand before each one."""
    left = torch.zeros(len(rows.moved.at), n, dtype=torch.long, device=rows.moved.at.device)
    for group in (rows.moved, rows.context):
        left.scatter_add_(1, group.at, group.valid.long())
    return left.cumsum(1) - left


def positions_for(pre: Prefill, tokens: Index, closed: torch.Tensor | None) -> torch.Tensor | None:
    """``position_ids`` of chosen tokens as layers take them, (B, T); None where they take none."""
    if pre.layer_positions is None:
        return None
    positions = pre.layer_positions if closed is None else closed
    return tokens.take(positions.expand(len(tokens.at), -1))


def angles_for(pre: Prefill, layer: int, tokens: Index, closed: torch.Tensor | None) -> Angles:
    """Rotary embedding of chosen tokens, (B, T, head size)."""
    if closed is None:
        both = pre.angles[layer]
    else:
        positions = closed.expand(*pre.positions.shape[:-2], *closed.shape)
        both = rotary_angles(pre.vlm, positions, layer, pre.states[0])
    cos, sin = (tokens.take(part.expand(len(tokens.at), -1, -1)) for part in both)
    return cos, sin
