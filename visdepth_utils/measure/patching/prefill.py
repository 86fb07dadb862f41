"""One plain forward pass of a batch, kept in the parts from which any layer can be run again.

Image tokens come before the question and attention looks backwards, so most of what an
intervention would compute is what the plain pass has computed already: every key and value of
tokens before the change, and every state below the layer of the change. ``prefill`` keeps these;
``rerun`` runs only the rest.
"""

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from accelerate.utils import send_to_device
from transformers import DynamicCache

from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.hooks import refuse_nan, rotary_positions
from visdepth_utils.models.parts import Angles, embed, head, refuse_unmaskable, window
from visdepth_utils.models.vlm import VLM

_OWN = ("attention_mask", "position_embeddings", "position_ids", "past_key_values", "use_cache")


@dataclass(frozen=True, eq=False)
class Index:
    """Some tokens of every sample, in order, right-aligned: ``at`` (B, T), their places.

    ``valid`` is False where a sample has fewer than T tokens.
    """

    at: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> Self:
        """The True places of a mask (B, S); T is the largest number of them in a row."""
        width = int(mask.sum(-1).max()) if mask.numel() else 0
        at = mask.long().argsort(dim=1, stable=True)[:, mask.shape[1] - width :]
        return cls(at, mask.gather(1, at))

    def __len__(self) -> int:
        """T."""
        return self.at.shape[1]

    def take(self, values: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """Pick these tokens along ``dim`` of a tensor whose first dimension is the batch."""
        shape = [1] * values.ndim
        shape[0], shape[dim] = self.at.shape
        wanted = list(values.shape)
        wanted[dim] = len(self)
        return values.gather(dim, self.at.to(values.device).view(shape).expand(wanted))


@dataclass(frozen=True, eq=False)
class Prefill:
    """What a plain pass over B samples of S tokens left behind, K of which were kept."""

    vlm: VLM
    enc: Encoded
    logits: torch.Tensor  # fp32 (B, V), the next token's
    kept: torch.Tensor  # bool (B, S), tokens whose states were kept
    # L+1 (B, K, D): what goes into layer l; the last comes out of the last layer, before the norm.
    states: list[torch.Tensor]
    keys: list[torch.Tensor]  # L (B, H, S, head size), rotated
    values: list[torch.Tensor]
    masks: list[torch.Tensor]  # L bool (B, S, S): which query may read which key; equal ones shared
    causal: list[bool]  # whether the model itself ran a layer without a mask, as plainly causal
    angles: list[Angles]
    positions: torch.Tensor  # (..., B, S), as the rotary embedding took them
    extra: list[dict[str, Any]]  # what else each layer was called with
    # ``position_ids`` given to the layers, (B, S); those of three axes are in ``angles`` alone.
    layer_positions: torch.Tensor | None
    # Layer -> what the decoder itself adds after it (DeepStack), (B, K, D): zero except on images.
    added: dict[int, torch.Tensor]

    @cached_property
    def attended(self) -> torch.Tensor:
        """Bool (B, S), all tokens except padding."""
        return self.enc.inputs["attention_mask"].bool()

    @cached_property
    def _kept_index(self) -> Index:
        return Index.of(self.kept)

    def state(self, layer: int, tokens: Index) -> torch.Tensor:
        """States (B, T, D) of kept tokens going into a layer; zero where a slot is empty."""
        return self._pick(self.states[layer], tokens)

    def addition(self, layer: int, tokens: Index) -> torch.Tensor | None:
        """What is added to kept tokens after a layer, (B, T, D); None where nothing is."""
        return self._pick(self.added[layer], tokens) if layer in self.added else None

    def _pick(self, values: torch.Tensor, tokens: Index) -> torch.Tensor:
        index = self._kept_index
        slots = (
            self.kept.long().cumsum(1) - 1 + len(index) - self.kept.sum(1, keepdim=True)
        ).clamp(min=0)
        chosen = Index(slots.gather(1, tokens.at), tokens.valid).take(values)
        return chosen.masked_fill(~tokens.valid[..., None], 0)


@torch.no_grad()
def prefill(vlm: VLM, enc: Encoded, keep: torch.Tensor) -> Prefill:
    """Run the untouched model once and keep the states of the tokens in ``keep``, bool (B, S).

    Raises:
        ValueError: Attention without a mask per layer, layers without keys, a family whose masks or
            output head do not follow the rules that reruns rely on, or NaN (names the layer).
    """
    refuse_unmaskable(vlm)
    index = Index.of(keep)
    states: list[torch.Tensor] = []
    outputs: dict[int, torch.Tensor] = {}
    calls: list[dict[str, Any]] = []

    def before(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        states.append(index.take(args[0] if args else kwargs["hidden_states"]).to(vlm.device))
        calls.append(send_to_device(kwargs, vlm.device, skip_keys="past_key_values"))

    def after(_module: torch.nn.Module, _args: tuple, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        outputs[len(calls) - 1] = index.take(state).to(vlm.device)

    cache = DynamicCache()  # without a config: sliding layers must keep all keys
    with contextlib.ExitStack() as stack, rotary_positions(vlm) as positions:
        for layer in vlm.layers:
            stack.enter_context(layer.register_forward_pre_hook(before, with_kwargs=True))
        for number in {*vlm.injection_layers, vlm.n_layers - 1}:
            stack.enter_context(vlm.layers[number].register_forward_hook(after))
        out = vlm.model(**enc.inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    states.append(outputs.pop(vlm.n_layers - 1))
    given = calls[0].get("position_ids")
    found = Prefill(
        vlm=vlm,
        enc=enc,
        logits=out.logits[:, -1].to(vlm.device).float(),
        kept=keep,
        states=states,
        keys=[layer.keys for layer in cache.layers],
        values=[layer.values for layer in cache.layers],
        masks=_masks(vlm, enc, calls),
        causal=[call.get("attention_mask") is None for call in calls],
        angles=[call["position_embeddings"] for call in calls],
        positions=positions[0].to(vlm.device),
        extra=[{k: v for k, v in call.items() if k not in _OWN} for call in calls],
        layer_positions=given if given is not None and given.ndim == 2 else None,
        added={number: states[number + 1] - output for number, output in outputs.items()},
    )
    refuse_nan(vlm, enc, found.logits)
    _check(found)
    return found


def _masks(vlm: VLM, enc: Encoded, calls: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The masks of all layers as bool (B, S, S); None means causal, which needs no padding."""
    attended = enc.inputs["attention_mask"].bool()
    n = attended.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=attended.device).tril()
    seen: dict[int, torch.Tensor] = {}
    masks = []
    for call in calls:
        given = call.get("attention_mask")
        if id(given) not in seen:
            if given is None:
                seen[id(given)] = causal & attended[:, None, :]
            else:
                allowed = given if given.dtype == torch.bool else given > -1
                seen[id(given)] = (allowed[:, 0] & attended[:, None, :]).expand(len(attended), n, n)
        masks.append(seen[id(given)])
    return masks


def _check(found: Prefill) -> None:
    """What reruns take for granted: masks of new tokens, input embeddings, the output head."""
    vlm, n = found.vlm, found.attended.shape[1]
    back = n - 1 - torch.arange(n, device=found.attended.device)
    for layer, mask in enumerate(found.masks):
        size = window(vlm, layer)
        expected = found.attended & (back < size if size else True)
        if not torch.equal(mask[:, -1], expected):
            raise ValueError(
                f"{vlm.name}: at layer {layer} the last token does not see what full or sliding "
                f"window attention would show it: {vlm.family.model_type} cannot be rerun by layer"
            )
    if bool(found.kept[:, -1].all()):
        embedded = embed(vlm, found.enc.inputs["input_ids"][:, -1])
        if not torch.allclose(embedded, found.states[0][:, -1], rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"{vlm.name}: the input of its first layer is not the word embedding: "
                f"{vlm.family.model_type} cannot be decoded row by row"
            )
        ours = head(vlm, found.states[-1][:, -1])
        gap = float((ours - found.logits).abs().max())
        close = 1e-4 if vlm.dtype == torch.float32 else 1e-2
        if gap > close * float(found.logits.abs().max()):
            raise ValueError(
                f"{vlm.name}: final norm and output head give logits off by {gap:g}: "
                f"{vlm.family.model_type} does something more after its last layer"
            )
