"""The paper's interventions as rows for ``rerun``: truncation at a depth, states of another layer.

Depth d (0..L): layers 0..d-1 see image tokens, layers d.. do not. Layers are 0..L-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch

from visdepth_utils.measure.patching.prefill import Index, Prefill
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.parts import window
from visdepth_utils.models.vlm import VLM

READERS = ("all", "question", "answer")
"""all: every token but the image's; question: those before the prompt's last; answer: the prompt's
last token and those generated, at which the answer is read off.
"""

MODES = ("remove", "renumber", "freeze")
"""remove: rows gone, positions kept; renumber: rows gone, positions closed up; freeze: rows keep
their state and stay readable.
"""


def check_depths(vlm: VLM, depths: str | Sequence[int], mode: str = "remove") -> list[int]:
    """Depths asked for, ``"all"`` or numbers in 0..L, sorted and without repeats.

    Raises:
        ValueError: Unknown mode, no depths, one outside 0..L, or one that this mode cannot cut at.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown: use {', '.join(MODES)}")
    last = vlm.n_layers
    first = len(vlm.injection_layers) if mode == "freeze" else 0
    if isinstance(depths, str):
        if depths != "all":
            raise ValueError(f"depths {depths!r}: use 'all' or a list of numbers in 0..{last}")
        return list(range(first, last + 1))
    if not isinstance(depths, Iterable):
        raise ValueError(f"depths {depths!r}: use 'all' or a list of numbers in 0..{last}")
    depths = list(depths)
    for d in depths:
        number = isinstance(d, Real) and not isinstance(d, bool)
        if not number or not 0 <= d <= last or int(d) != d:
            raise ValueError(f"depth {d!r} is not in 0..{last}, the depths of {vlm.name}")
    chosen = sorted({int(d) for d in depths})
    if not chosen:
        raise ValueError("no depths given: use 'all' or a list with at least one number")
    if chosen[0] < first:
        raise ValueError(
            f"depth {chosen[0]} lies inside the layers 0..{first - 1} after which {vlm.name} adds "
            f"visual features again (DeepStack); frozen rows would lose them: use {first}..{last}"
        )
    return chosen


def image_spans(enc: Encoded) -> torch.Tensor:
    """Bool (B, S): from the first image token of a sample to its end.

    Raises:
        ValueError: Names a sample without an image, or one that ends with it.
    """
    last = enc.is_image[:, -1]
    if last.any():
        ends = int(last.nonzero()[0])
        name = enc.samples[ends].id if enc.samples else f"number {ends}"
        raise ValueError(
            f"sample {name!r} ends with an image token, where its answer is read "
            "off: it cannot be removed or replaced; use a chat template with text after the image"
        )
    has = enc.is_image.any(-1)
    if not has.all():
        blind = int((~has).nonzero()[0])
        name = enc.samples[blind].id if enc.samples else f"number {blind}"
        raise ValueError(
            f"sample {name!r} has no image tokens: there is nothing to remove or replace; "
            "give samples with images"
        )
    return enc.is_image.long().cumsum(1) > 0


def reached(vlm: VLM, enc: Encoded, changed: torch.Tensor) -> torch.Tensor:
    """Bool (B, S): tokens whose states can change when those of ``changed`` (B, S) do."""
    attended = enc.inputs["attention_mask"].bool()
    return attended & (changed.long().cumsum(1) > 0) if vlm.family.causal_prefix else attended


def moved_tokens(vlm: VLM, enc: Encoded, changed: torch.Tensor) -> torch.Tensor:
    """Tokens that a substitution runs again, bool (B, S): those reached, or all of them.

    All where little stands before the change and nothing is padded: the causal kernel is faster.
    """
    moved, attended = reached(vlm, enc, changed), enc.inputs["attention_mask"].bool()
    before = int((attended & ~moved).sum())
    return attended if attended.all() and 8 * before <= int(moved.sum()) else moved


def kept_for_truncation(vlm: VLM, enc: Encoded, mode: str) -> torch.Tensor:
    """Tokens whose states a prefill must keep for ``truncation``, bool (B, S)."""
    image_spans(enc)
    moved = reached(vlm, enc, enc.is_image)
    return moved if mode == "freeze" else moved & ~enc.is_image


def truncation(
    pre: Prefill,
    depths: Sequence[int],
    mode: str = "remove",
    frozen: Callable[[int], torch.Tensor] | None = None,
) -> Branches:
    """One row per depth, of a prefill made with ``kept_for_truncation``.

    ``frozen``, for ``"freeze"``: depth -> states (B, M, D) of the M image tokens that later layers
    read in the place of the samples' own; None for the own.
    """
    enc = pre.enc
    may_move = reached(pre.vlm, enc, enc.is_image)
    moved = Index.of(may_move & ~enc.is_image)
    images = Index.of(enc.is_image) if mode == "freeze" else None
    frozen = frozen or (lambda depth: pre.state(depth, images))
    closed = None
    if mode == "renumber":
        left = pre.attended & ~enc.is_image
        rank = left.long().cumsum(1) - left.long()
        closed = rank + first_positions(pre.positions, pre.attended)
    return Branches(
        starts=list(depths),
        moved=moved,
        context=Index.of(pre.attended & ~may_move),
        initial=lambda row: pre.state(depths[row], moved),
        frozen=images,
        frozen_state=None if images is None else lambda row: frozen(depths[row]),
        closed=closed,
    )


def hiding(
    pre: Prefill,
    first: Sequence[int],
    until: Sequence[int],
    keys: torch.Tensor,
    readers: Sequence[str],
) -> Branches:
    """One row per window of layers in which image tokens ``keys``, bool (B, R, S), are hidden.

    Each row has its ``first`` layer, not decreasing, the layer ``until`` which it lasts, and one of
    READERS, from whom they are hidden; image tokens that stay visible are readers as well. The
    prefill must have kept the image tokens and all that follow them.
    """
    enc = pre.enc
    after = image_spans(enc) & pre.attended
    text, stays = after & ~enc.is_image, enc.is_image[:, None] & ~keys
    # Where none stays, the image runs as it did: only what follows it must run again.
    may_move = reached(pre.vlm, enc, enc.is_image if bool(stays.any()) else text)
    last = torch.zeros_like(after)
    last[:, -1] = True
    kinds = {"all": after, "question": text & ~last, "answer": last}
    moved = Index.of(may_move)
    return Branches(
        starts=list(first),
        moved=moved,
        context=Index.of(pre.attended & ~may_move),
        initial=lambda row: pre.state(first[row], moved),
        hiding=Hiding(
            keys=keys,
            readers=torch.stack([kinds[name] for name in readers], 1) & ~keys,
            answers=[name != "question" for name in readers],
            until=list(until),
        ),
    )


def first_positions(positions: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Position id of each sample's first token, (B, 1): 0, or 1 where a family counts from there.

    ``positions`` (..., B or 1, S) as the rotary embedding took them; ``attended`` bool (B, S).
    """
    one_axis = positions.reshape(-1, *positions.shape[-2:])[0].expand_as(attended)
    return one_axis.gather(1, attended.long().argmax(1, keepdim=True))


def replaceable(enc: Encoded, modality: str) -> torch.Tensor:
    """Tokens that a substitution replaces, bool (B, S): the image, or text after it has begun.

    Special tokens that follow text count as text here, because the answer is read off at one of
    them; those that belong to an image (row breaks, end of vision) are of neither kind.
    """
    if modality not in ("image", "text"):
        raise ValueError(f"modality {modality!r} is unknown: use 'image' or 'text'")
    spans = image_spans(enc)
    if modality == "image":
        return enc.is_image
    at = torch.arange(1, spans.shape[1] + 1, device=spans.device)
    last_text, last_image = ((at * kind).cummax(1).values for kind in (enc.is_text, enc.is_image))
    follows_text = last_text > last_image
    chosen = enc.inputs["attention_mask"].bool() & spans & ~enc.is_image & follows_text
    if not chosen.any(-1).all():
        raise ValueError("a sample has no text after its image: there is nothing to replace")
    return chosen


def check_layers(vlm: VLM, layers: Sequence[int], modality: str) -> list[int]:
    """Layers, sorted, at which states of ``modality`` can be replaced.

    Raises:
        ValueError: None given, one outside 0..L-1, or image states below the last layer after which
            the family adds visual features again: they would be added twice.
    """
    chosen = sorted({int(layer) for layer in layers})
    last = vlm.n_layers - 1
    if not chosen:
        raise ValueError(f"no layers given: use some of 0..{last}")
    if wrong := [layer for layer in chosen if not 0 <= layer <= last]:
        raise ValueError(f"layer {wrong[0]} is not in 0..{last}, the layers of {vlm.name}")
    injected = len(vlm.injection_layers) - 1
    if modality == "image" and chosen[0] <= injected:
        raise ValueError(
            f"{vlm.name} adds visual features after layers 0..{injected} (DeepStack): image states "
            f"put in at layer {chosen[0]} would get them twice; use layers {injected + 1}..{last}"
        )
    return chosen


def substitution(
    pre: Prefill, layers: Sequence[int], states: Sequence[torch.Tensor], modality: str
) -> Branches:
    """One row per layer, in order: ``states`` (B, n, D) take the place of the plain ones there.

    They are of the n tokens of ``Index.of(replaceable(...))``; the prefill must have kept every
    token of ``moved_tokens``.
    """
    chosen = replaceable(pre.enc, modality)
    may_move = moved_tokens(pre.vlm, pre.enc, chosen)
    moved = Index.of(may_move)
    target = Index.of(chosen)
    # Where in the moved tokens each replaced one stands.
    slots = may_move.long().cumsum(1) - 1 + len(moved) - may_move.sum(1, keepdim=True)
    slots = slots.clamp(min=0).gather(1, target.at)

    def initial(row: int) -> torch.Tensor:
        state = pre.state(layers[row], moved).clone()
        for b in range(len(state)):
            here = target.valid[b]
            state[b, slots[b][here]] = states[row][b][here]
        return state

    return Branches(
        starts=list(layers),
        moved=moved,
        context=Index.of(pre.attended & ~may_move),
        initial=initial,
    )


@dataclass(frozen=True, eq=False)
class Hiding:
    """Keys that stay where they are and are not read, by row."""

    keys: torch.Tensor  # bool (B, R, S), what is not read
    readers: torch.Tensor  # bool (B, R, S), tokens of the prompt that do not read it
    answers: Sequence[bool]  # whether the tokens that are generated do not read it either
    until: Sequence[int]  # layer from which it is read again


@dataclass(frozen=True, eq=False)
class Branches:
    """R variants of a prefilled batch.

    Tokens in none of ``moved``, ``context`` and ``frozen`` are gone.
    """

    starts: Sequence[int]  # layer at which each row leaves the plain pass, not decreasing; L: never
    moved: Index  # tokens that run again; the sequence's last token is one of them
    context: Index  # tokens whose plain keys the moved ones may read
    initial: Callable[[int], torch.Tensor]  # row -> moved states (B, T, D) going into its start
    frozen: Index | None = None  # tokens that no longer run but stay readable
    # Row -> their states (B, M, D), the same at all layers.
    frozen_state: Callable[[int], torch.Tensor] | None = None
    # Position ids (B, S) from ``starts`` on; None keeps the plain ones. With them, sliding windows
    # count tokens that are left.
    closed: torch.Tensor | None = None
    hiding: Hiding | None = None  # what is not read from ``starts`` on, though it is there


def hidden_from(rows: Branches, layer: int, n: int) -> torch.Tensor:
    """What the moved tokens of the first n rows do not read here, bool (B, n, T, context + T)."""
    hiding = rows.hiding
    now = torch.tensor([layer < until for until in hiding.until[:n]], device=hiding.keys.device)
    groups = (rows.context, rows.moved)
    keys = [torch.stack([g.take(row) for row in hiding.keys.unbind(1)[:n]], 1) for g in groups]
    readers = torch.stack([rows.moved.take(row) for row in hiding.readers.unbind(1)[:n]], 1)
    return readers[..., None] & torch.cat(keys, 2)[:, :, None] & now[:, None, None]


def row_mask(pre: Prefill, rows: Branches, layer: int) -> torch.Tensor:
    """Which moved token may read which key, bool (B, T, context + frozen + T)."""
    moved, groups = rows.moved, [rows.context, *([rows.frozen] if rows.frozen else []), rows.moved]
    by_query = moved.take(base_mask(pre, rows, layer), 1)
    parts = [g.take(by_query, 2) & g.valid[:, None] for g in groups]
    mask = torch.cat(parts, 2)
    # An empty slot reads itself, so that its softmax is over something; nobody reads it.
    own = torch.eye(len(moved), dtype=torch.bool, device=mask.device) & ~moved.valid[:, :, None]
    mask[:, :, mask.shape[2] - len(moved) :] |= own
    return mask


def base_mask(pre: Prefill, rows: Branches, layer: int) -> torch.Tensor:
    """The plain mask (B, S, S), with windows over the tokens that are left if positions closed."""
    size = window(pre.vlm, layer)
    if rows.closed is None or size is None:
        return pre.masks[layer]
    n = pre.attended.shape[1]
    rank = closed_rank(rows, n)
    causal = torch.ones(n, n, dtype=torch.bool, device=rank.device).tril()
    near = rank[:, :, None] - rank[:, None, :] < size
    return causal & near & pre.attended[:, None, :]


def closed_rank(rows: Branches, n: int) -> torch.Tensor:
    """(B, S): how many tokens that are left stand before each one."""
    left = torch.zeros(len(rows.moved.at), n, dtype=torch.long, device=rows.moved.at.device)
    for group in (rows.moved, rows.context):
        left.scatter_add_(1, group.at, group.valid.long())
    return left.cumsum(1) - left
