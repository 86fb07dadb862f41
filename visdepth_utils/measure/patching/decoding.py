"""Greedy decoding of many rows at once, with the keys they share held once.

All rows of a sample stand side by side on the sequence axis: one layer call takes (B, R, D), and a
mask says which row may read which key. Keys of the plain pass (the image among them) are there
once, whatever the number of rows; beside them stand each row's own.
"""

from collections.abc import Sequence
from typing import Any

import torch

from visdepth_utils.measure.patching.branches import Branches, closed_rank
from visdepth_utils.measure.patching.prefill import Prefill
from visdepth_utils.measure.patching.rerun import Rerun, run_layer
from visdepth_utils.models.parts import check_rope, embed, head, rotary_angles, window


class _Shelf:
    """Keys and values of one layer, and which row may read which of them.

    ``keys`` and ``values`` are (B, H, room, head size), ``used`` columns filled; ``seen`` is bool
    (B, R, room). ``age`` (B, 2, room): how far back each key lies from the first new token, counted
    over all tokens and over those that are left; None in layers without a window.
    """

    def __init__(self, pre: Prefill, done: Rerun, layer: int, room: int) -> None:
        """Lay out the plain keys, then the own keys of the rows that have started by this layer."""
        rows = done.rows
        n_rows, own = len(rows.starts), done.keys[layer]
        blocks = [
            [plain] + ([] if mine is None else [mine.transpose(1, 2).flatten(2, 3)])
            for plain, mine in ((pre.keys[layer], own), (pre.values[layer], done.values[layer]))
        ]
        self.used = sum(part.shape[2] for part in blocks[0])
        self.keys, self.values = (self._with_room(parts, room) for parts in blocks)
        done.keys[layer] = done.values[layer] = None  # taken over: not held twice
        n_samples, n_plain = pre.attended.shape
        device = pre.attended.device
        size = self.used + room
        self.seen = torch.zeros(n_samples, n_rows, size, dtype=torch.bool, device=device)
        context = torch.zeros_like(pre.attended).scatter(1, rows.context.at, rows.context.valid)
        mine = torch.cat([part.valid for part in (rows.frozen, rows.moved) if part is not None], 1)
        width = mine.shape[1]
        for row, start in enumerate(rows.starts):
            started = start <= layer
            self.seen[:, row, :n_plain] = context if started else pre.attended
            if started:
                first = n_plain + row * width
                self.seen[:, row, first : first + width] = mine
            hiding = rows.hiding
            if started and hiding and hiding.answers[row] and layer < hiding.until[row]:
                gone = hiding.keys[:, row]
                self.seen[:, row, :n_plain] &= ~gone
                self.seen[:, row, first : first + width] &= ~rows.moved.take(gone)
        self.size = window(pre.vlm, layer)
        self.age = self._ages(pre, rows, layer, size) if self.size else None

    def _with_room(self, parts: list[torch.Tensor], room: int) -> torch.Tensor:
        first = parts[0]
        out = first.new_empty(*first.shape[:2], self.used + room, first.shape[3])
        torch.cat(parts, 2, out=out[:, :, : self.used])
        return out

    def _ages(self, pre: Prefill, rows: Branches, layer: int, size: int) -> torch.Tensor:
        n_samples, n = pre.attended.shape
        at = torch.arange(n, device=pre.attended.device).expand(n_samples, n)
        plain = n - at
        closed = plain
        if rows.closed is not None:
            rank = closed_rank(rows, n)
            closed = rank[:, -1:] + 1 - rank
        own = torch.cat([part.at for part in (rows.frozen, rows.moved) if part is not None], 1)
        started = sum(start <= layer for start in rows.starts)
        out = torch.zeros(n_samples, 2, size, dtype=torch.long, device=plain.device)
        for kind, ages in enumerate((plain, closed)):
            out[:, kind, :n] = ages
            out[:, kind, n : n + started * own.shape[1]] = ages.gather(1, own).repeat(1, started)
        return out

    def room_for(self, rows: torch.Tensor, step: int) -> None:
        """Open one column for each row's new token, which only that row may read."""
        new = torch.arange(self.used, self.used + len(rows), device=self.seen.device)
        self.seen[:, rows, new] = True
        if self.age is not None:
            self.age[:, :, self.used : self.used + len(rows)] = -step

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the attention, as a KV cache is."""
        end = self.used + keys.shape[2]
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def mask(self, rows: torch.Tensor, step: int, closed: torch.Tensor) -> torch.Tensor:
        """What the new tokens may read, bool (B, rows, used + rows); call after ``room_for``."""
        end = self.used + len(rows)
        seen = self.seen[:, rows, :end]
        if self.age is None:
            return seen
        return seen & (self.age[:, closed.long()[rows], :end] + step < self.size)

    def forget(self, rows: torch.Tensor) -> None:
        """Drop the columns that none of these rows reads."""
        needed = self.seen[:, rows, : self.used].any(1).any(0).nonzero()[:, 0]
        room = self.seen.shape[2] - self.used
        columns = torch.cat([needed, torch.arange(self.used, self.used + room).to(needed)])
        there = columns.to(self.keys.device)
        self.keys, self.values = self.keys[:, :, there], self.values[:, :, there]
        self.seen = self.seen[:, :, columns]
        self.age = None if self.age is None else self.age[:, :, columns]
        self.used = len(needed)


@torch.no_grad()
def greedy(
    pre: Prefill, done: Rerun, logits: torch.Tensor, max_new_tokens: int, stop: Sequence[int] = ()
) -> list[list[list[int]]]:
    """Decode every row of every sample to its end, from the first new token's logits (B, R, V).

    Gives token ids by sample and row, with the one of ``stop`` that ended them. The keys and values
    of ``done`` are taken over, layer by layer.
    """
    check_rope(pre.vlm, pre.enc, max_new_tokens)
    n_samples, n_rows = logits.shape[:2]
    ends = torch.tensor(list(stop), device=logits.device)
    tokens = logits.argmax(-1)
    finished = torch.isin(tokens, ends)
    said = [tokens]
    active = _unfinished(finished)
    room = n_rows * (max_new_tokens - 1)
    shelves = [_Shelf(pre, done, layer, room) for layer in range(pre.vlm.n_layers)] if room else []
    crowd = n_rows
    for step in range(max_new_tokens - 1):
        if not len(active):
            break
        if 2 * len(active) <= crowd:
            crowd = len(active)
            for shelf in shelves:
                shelf.forget(active)
        fresh = _step(pre, done.rows, shelves, said[-1][:, active], active, step)
        tokens = said[-1].clone()
        tokens[:, active] = fresh.argmax(-1)
        finished |= torch.isin(tokens, ends)
        said.append(tokens)
        active = _unfinished(finished)
    words = torch.stack(said, -1).tolist()
    return [[_ended(row, set(stop)) for row in sample] for sample in words]


def _step(
    pre: Prefill,
    rows: Branches,
    shelves: list[_Shelf],
    tokens: torch.Tensor,
    active: torch.Tensor,
    step: int,
) -> torch.Tensor:
    """Feed one token (B, A) of each active row; the next one's logits (B, A, V)."""
    vlm, ahead = pre.vlm, step + 1
    starts = torch.tensor(list(rows.starts), device=tokens.device)
    n_samples = len(tokens)
    hidden = embed(vlm, tokens)
    plain = pre.positions[..., -1:] + ahead
    closed = None if rows.closed is None else rows.closed[:, -1:] + ahead
    angles: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer, shelf in enumerate(shelves):
        kind = getattr(vlm.model.get_decoder().config, "layer_types", None)
        kind = kind[layer] if kind else None
        if (kind, "plain") not in angles:
            angles[kind, "plain"] = rotary_angles(vlm, plain, layer, hidden)
            if closed is not None:
                spread = closed.expand(*pre.positions.shape[:-2], *closed.shape)
                angles[kind, "closed"] = rotary_angles(vlm, spread, layer, hidden)
        moved_up = (starts <= layer) if closed is not None else torch.zeros_like(starts).bool()
        pick = moved_up[active][None, :, None]
        both = [angles[kind, name] for name in ("plain", "closed") if (kind, name) in angles]
        chosen = tuple(
            torch.where(pick, parts[-1], parts[0]).expand(n_samples, -1, -1)
            for parts in zip(*both, strict=True)
        )
        positions = None
        if pre.layer_positions is not None:
            usual = pre.layer_positions[..., -1:] + ahead
            positions = torch.where(pick[..., 0], usual if closed is None else closed, usual)
            positions = positions.expand(n_samples, -1)
        shelf.room_for(active, step)
        mask = shelf.mask(active, step, moved_up)
        hidden = run_layer(
            pre, layer, hidden, mask=mask, angles=chosen, positions=positions, cache=shelf
        )
    return head(vlm, hidden)


def _unfinished(finished: torch.Tensor) -> torch.Tensor:
    """Numbers of the rows of (B, R) in which some sample still speaks; a GPU is waited for once."""
    return (~finished.all(0)).nonzero()[:, 0]


def _ended(ids: list[int], stop: set[int]) -> list[int]:
    """The ids up to the first that stops."""
    return ids[: next((i for i, token in enumerate(ids, 1) if token in stop), None)]
