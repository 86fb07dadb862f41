"""Interventions on a model as it runs: forward-pre-hooks on untouched decoder layers.

Inside the ``with`` block the model's own ``forward`` and ``generate`` run with the intervention;
after it, also after an error, the hooks are gone. Every row of the batch may have its own depth, so
one ``generate`` answers for many depths. The sweeps reach the same numbers faster (``patching``).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import send_to_device

from visdepth_utils.measure.patching.branches import check_depths, first_positions, image_spans
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.hooks import rotary_positions
from visdepth_utils.models.parts import mask_for, refuse_unmaskable, rotary_angles, window
from visdepth_utils.models.vlm import VLM

Edit = Callable[[int, torch.Tensor, dict[str, Any]], torch.Tensor]
"""Called with (layer, hidden states, the layer's keyword arguments, to be changed in place)."""


@contextlib.contextmanager
def edited(vlm: VLM, edit: Edit) -> Iterator[None]:
    """Let ``edit`` change what every decoder layer is called with; the one mechanism of them all.

    It returns the hidden states that the layer shall take.
    """

    def before(
        index: int, _module: torch.nn.Module, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        # Of a spread model, what a layer is called with may lie where the one before it ran.
        kwargs = send_to_device(dict(kwargs), vlm.device, skip_keys="past_key_values")
        hidden = args[0] if args else kwargs.pop("hidden_states")
        return (edit(index, hidden.to(vlm.device), kwargs), *args[1:]), kwargs

    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(vlm.layers):
            hook = partial(before, index)
            stack.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield


@contextlib.contextmanager
def truncated(
    vlm: VLM, enc: Encoded, depth: int | Sequence[int], mode: str = "remove"
) -> Iterator[None]:
    """From layer ``depth`` on, no token sees the image (or, frozen, sees it as it was there).

    ``enc`` is the batch that will be run inside the block; ``depth`` in 0..L is one for all rows or
    one per row; for ``mode`` see ``truncation_sweep``. The image rows go on being computed: this
    saves no time. For ``remove`` it equals dropping the rows.

    Raises:
        ValueError: A mode or depth that cannot be; another batch was run inside the block; a
            sliding window's cache that has already dropped keys which closed-up positions need.
    """
    refuse_unmaskable(vlm)
    image_spans(enc)
    depths = [depth] * len(enc.is_image) if isinstance(depth, int) else list(depth)
    if len(depths) != len(enc.is_image):
        raise ValueError(f"{len(depths)} depths for {len(enc.is_image)} rows: give one per row")
    check_depths(vlm, depths, mode)
    cut = torch.tensor(depths, device=vlm.device)
    image, n = enc.is_image, enc.is_image.shape[1]
    attended = enc.inputs["attention_mask"].bool()
    left = attended & ~image
    saved: dict[str, torch.Tensor] = {}

    def edit(layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        _same_batch(hidden, len(cut))
        past, n_keys, offset = _lengths(layer, hidden, kwargs)
        if mode == "freeze":
            if past == 0:
                if hidden.shape[1] != n:
                    raise ValueError(f"{hidden.shape[1]} tokens were run, the batch has {n}")
                first = (cut == layer)[:, None, None]
                saved["state"] = torch.where(first, hidden, saved.get("state", hidden))
                frozen = (cut < layer)[:, None, None] & image[..., None]
                hidden = torch.where(frozen, saved["state"], hidden)
            return hidden
        if not bool((cut <= layer).any()):
            return hidden
        here = cut <= layer
        queries = past + torch.arange(hidden.shape[1], device=hidden.device)
        keys = offset + torch.arange(n_keys, device=hidden.device)
        allowed = _allowed(kwargs.get("attention_mask"), queries, keys, len(cut))
        if mode == "renumber":
            size = window(vlm, layer)
            rank = _ranks(left, max(n, past + hidden.shape[1]))
            if size is not None:
                if n_keys < past + hidden.shape[1]:
                    raise ValueError(
                        "the cache has dropped keys beyond the sliding window, which closed-up "
                        "positions bring back: pass past_key_values=DynamicCache()"
                    )
                near = rank[:, queries, None] - rank[:, None, keys] < size
                near &= (queries[:, None] >= keys) & _beyond(attended, keys, True)[:, None]
                allowed = torch.where(here[:, None, None], near, allowed)
            if past == 0:
                saved["first"] = first_positions(positions[-1], attended)
            closed = rank[:, queries] + saved["first"]
            _renumber(vlm, layer, hidden, kwargs, closed, here, positions[-1].shape[:-2])
        gone = _beyond(image, keys, False)[:, None, :] & ~_beyond(image, queries, False)[..., None]
        allowed = allowed & ~(gone & here[:, None, None])
        kwargs["attention_mask"] = mask_for(vlm, allowed, hidden.dtype)
        return hidden

    with rotary_positions(vlm) as positions, edited(vlm, edit):
        yield


@contextlib.contextmanager
def substituted(
    vlm: VLM, enc: Encoded, layer: int, where: torch.Tensor, states: torch.Tensor
) -> Iterator[None]:
    """Put other states in the place of some tokens' own, going into one layer, in the prefill.

    ``enc`` is the batch that will be run inside the block, ``layer`` in 0..L-1; ``states`` are (B,
    S, D), read only at ``where``, bool (B, S). Tokens generated afterwards read the plain keys
    below that layer and the new ones from it on.

    Raises:
        ValueError: A layer out of range, or another batch was run inside the block.
    """
    if not 0 <= layer < vlm.n_layers:
        raise ValueError(f"layer {layer} is not in 0..{vlm.n_layers - 1}, the layers of {vlm.name}")

    def edit(index: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        _same_batch(hidden, len(where))
        if index != layer or _lengths(index, hidden, kwargs)[0]:
            return hidden
        if hidden.shape[:2] != where.shape:
            raise ValueError(
                f"{hidden.shape[1]} tokens were run, the batch has {where.shape[1]}: "
                "run the batch that the block was opened with"
            )
        return torch.where(where[..., None], states.to(hidden.dtype), hidden)

    with edited(vlm, edit):
        yield


def _same_batch(hidden: torch.Tensor, rows: int) -> None:
    if len(hidden) != rows:
        raise ValueError(
            f"{len(hidden)} rows were run, the block was opened for {rows}: "
            "run the batch that it was opened with"
        )


def _lengths(layer: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> tuple[int, int, int]:
    """Tokens before these, keys the layer will read, and where the first of those keys stands."""
    cache = kwargs.get("past_key_values")
    if cache is None:
        return 0, hidden.shape[1], 0
    n_keys, offset = cache.get_mask_sizes(hidden.shape[1], layer)
    return cache.get_seq_length(layer), n_keys, offset


def _allowed(
    mask: torch.Tensor | None, queries: torch.Tensor, keys: torch.Tensor, rows: int
) -> torch.Tensor:
    """The layer's mask as bool (B, queries, keys); None means causal."""
    if mask is None:
        return (queries[:, None] >= keys).expand(rows, -1, -1)
    allowed = mask if mask.dtype == torch.bool else mask > -1
    return allowed[:, 0, :, : len(keys)].expand(rows, -1, -1)


def _beyond(table: torch.Tensor, at: torch.Tensor, later: bool) -> torch.Tensor:
    """Look up (B, S) at positions that may lie beyond S, where the answer is ``later``."""
    n = table.shape[1]
    return torch.where(at < n, table[:, at.clamp(max=n - 1)], torch.tensor(later).to(table))


def _ranks(left: torch.Tensor, length: int) -> torch.Tensor:
    """(B, length): how many tokens that are left stand before each position."""
    more = torch.ones(len(left), length - left.shape[1], dtype=torch.bool, device=left.device)
    longer = torch.cat([left, more], 1).long()
    return longer.cumsum(1) - longer


def _renumber(
    vlm: VLM,
    layer: int,
    hidden: torch.Tensor,
    kwargs: dict[str, Any],
    closed: torch.Tensor,
    here: torch.Tensor,
    axes: Sequence[int],
) -> None:
    """Give the rows that are cut here closed-up positions (B, queries), equal on all axes."""
    new = rotary_angles(vlm, closed.expand(*axes, *closed.shape), layer, hidden)
    kwargs["position_embeddings"] = tuple(
        torch.where(here[:, None, None], a, b)
        for a, b in zip(new, kwargs["position_embeddings"], strict=True)
    )
    if kwargs.get("position_ids") is not None:
        old = kwargs["position_ids"].expand(len(here), -1)
        kwargs["position_ids"] = torch.where(here[:, None], closed, old)
