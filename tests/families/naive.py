"""The interventions again, as plainly as possible: one sample, one depth, the whole model.

Nothing here is shared with the package: no cache, no batch, no padding, no prefix that is computed
once. Every number comes from a full run of the untouched model, in which hooks change what single
layers are called with; every generated token is a new full run on a longer prompt.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.families.batches import encoded
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.vlm import VLM


def longer(enc: Encoded, name: str, tokens: list[int]) -> Encoded:
    """The prompt of one sample with tokens written behind it."""
    ids = torch.cat([enc.inputs["input_ids"], torch.tensor([tokens], dtype=torch.long)], 1)
    own = {"input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "token_type_ids"}
    given = {key: value for key, value in enc.inputs.items() if key not in own}
    out = encoded(name, ids, torch.ones_like(ids), given)
    if name == "paligemma":  # what is answered looks back only
        out.inputs["token_type_ids"][:, enc.is_image.shape[1] :] = 1
    return out


@contextlib.contextmanager
def _layer_hooks(vlm: VLM, change: Callable[[int, torch.Tensor, dict], torch.Tensor]) -> Iterator:
    handles = []
    for i, layer in enumerate(vlm.model.get_decoder().layers):

        def hook(_module: Any, args: tuple, kwargs: dict, i: int = i) -> tuple:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            return (change(i, hidden, kwargs), *args[1:]), kwargs

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(vlm: VLM, enc: Encoded, change: Callable | None = None) -> torch.Tensor:
    """Logits (S, V) of one sample, with ``change`` applied to every layer's call."""
    with _layer_hooks(vlm, change or (lambda i, hidden, kwargs: hidden)):
        return vlm.model(**enc.inputs, use_cache=False).logits[0].float()


@torch.no_grad()
def layer_inputs(vlm: VLM, enc: Encoded) -> list[torch.Tensor]:
    """What goes into each layer, (S, D)."""
    found = []

    def look(i: int, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
        found.append(hidden[0].clone())
        return hidden

    run(vlm, enc, look)
    return found


def visible(mask: torch.Tensor | None, n: int) -> torch.Tensor:
    """A layer's mask as a table: may query row read key column; (S, S)."""
    if mask is None:
        return torch.ones(n, n).tril().bool()
    return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0


def truncate(
    vlm: VLM, name: str, enc: Encoded, depth: int, mode: str, frozen: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits (S, V) with the image gone from layer ``depth`` on; rows of the image mean nothing.

    ``frozen``: states (n, D) that stand there in the place of the n image tokens' own.
    """
    image = enc.is_image[0]
    n = len(image)
    text = (~image).nonzero()[:, 0].tolist()
    decoder = vlm.model.get_decoder()
    asked: list[torch.Tensor] = []
    kept: dict[str, torch.Tensor] = {}

    def watch(_module: Any, args: tuple, kwargs: dict) -> None:
        asked.append(args[1] if len(args) > 1 else kwargs["position_ids"])

    def change(i: int, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
        if i < depth:
            return hidden
        if mode == "freeze":
            if "state" not in kept:
                kept["state"] = hidden.clone()
                if frozen is not None:
                    kept["state"][0, image] = frozen
            return torch.where(image[None, :, None], kept["state"], hidden)
        table = visible(kwargs["attention_mask"], n).clone()
        if mode == "renumber":
            config = decoder.config
            kinds = getattr(config, "layer_types", None)
            sliding = kinds is not None and kinds[i] == "sliding_attention"
            if sliding:  # the window is over what is left
                for row, query in enumerate(text):
                    for column, key in enumerate(text):
                        table[query, key] = 0 <= row - column < config.sliding_window
            positions = asked[0].clone()
            start = positions.reshape(-1, n)[0, 0]
            positions[..., text] = start + torch.arange(len(text))
            of_layer = (kinds[i],) if name in ("gemma3", "gemma4") else ()
            kwargs["position_embeddings"] = decoder.rotary_emb(hidden, positions, *of_layer)
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = positions.reshape(-1, n)[:1]
        for query in text:
            table[query, image] = False
        shut = torch.where(table, 0.0, torch.finfo(hidden.dtype).min)
        kwargs["attention_mask"] = shut[None, None]
        return hidden

    handle = decoder.rotary_emb.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        return run(vlm, enc, change)
    finally:
        handle.remove()


def hide(
    vlm: VLM, enc: Encoded, layers: range, gone: torch.Tensor, readers: str, prompt: int
) -> torch.Tensor:
    """Logits (S, V); in ``layers`` the readers do not read ``gone`` (of the first ``prompt``).

    Image tokens that stay are among all readers, and are neither question nor answer.
    """
    n, image = enc.is_image.shape[1], enc.is_image[0]
    gone = torch.cat([gone, torch.zeros(n - len(gone), dtype=torch.bool)])

    def change(i: int, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
        if i not in layers:
            return hidden
        table = visible(kwargs["attention_mask"], n).clone()
        for query in (~gone).nonzero()[:, 0].tolist():
            answers = query >= prompt - 1
            if readers != "all" and (image[query] or answers != (readers == "answer")):
                continue
            for key in gone.nonzero()[:, 0].tolist():
                table[query, key] = False
        shut = torch.where(table, 0.0, torch.finfo(hidden.dtype).min)
        kwargs["attention_mask"] = shut[None, None]
        return hidden

    return run(vlm, enc, change)


def substitute(
    vlm: VLM, enc: Encoded, layer: int, where: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """Logits (S, V) with ``states`` (S, D) put in at ``where`` (S,) going into ``layer``."""

    def change(i: int, hidden: torch.Tensor, kwargs: dict) -> torch.Tensor:
        if i != layer:
            return hidden
        hidden = hidden.clone()
        hidden[0, where] = states[where]
        return hidden

    return run(vlm, enc, change)


def answer(
    logits_of: Callable[[Encoded], torch.Tensor], enc: Encoded, name: str, steps: int
) -> list[int]:
    """Greedy tokens; each is a new run on the prompt with all earlier ones behind it."""
    said: list[int] = []
    for _ in range(steps):
        said.append(int(logits_of(longer(enc, name, said))[-1].argmax()))
    return said
