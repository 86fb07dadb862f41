"""Checks at load: masks, hooks and states mean what the package says they mean."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from visdepth_utils.data.samples import Sample
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.models.encoding import not_text
from visdepth_utils.models.hooks import capture
from visdepth_utils.models.parts import unkeyed
from visdepth_utils.models.placement import weights_here
from visdepth_utils.models.vlm import VLM


def image_features(vlm: VLM, pixels: dict[str, torch.Tensor]) -> Any:
    """What tower and projector make of pictures; not every class says so at its top."""
    owner = vlm.model if hasattr(vlm.model, "get_image_features") else vlm.model.model
    found = owner.get_image_features(**pixels)
    return getattr(found, "pooler_output", found)


@torch.no_grad()
def check(vlm: VLM) -> None:
    """Prove on a tiny batch that masks, hooks and states mean what the package says they mean.

    ValueError names the check and both numbers.
    """
    slope = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)
    picture = Image.fromarray(slope[..., None].repeat(3, axis=2))
    words = "what is in the picture ?"
    shown = Sample("probe", "probe", (picture,), words, "", "", "probe")
    second = shown.images if vlm.family.needs_image else ()
    blind = Sample("probe-blind", "", second, f"{words} {words}", "", "", "probe")

    if not hasattr(decoder := vlm.model.get_decoder(), "layers"):
        raise ValueError(
            f"{vlm.name!r}: its text backbone {decoder.config.model_type!r} has no decoder layers "
            "by that name: give a model whose text_config is of another model_type, e.g. llama"
        )
    if not vlm.n_layers:
        raise ValueError(
            f"{vlm.name!r} has no decoder layers: fix num_hidden_layers in config.json"
        )
    named = [getattr(vlm.processor, "image_token_id", vlm.image_token_id)]
    known = getattr(vlm.processor, "image_token_ids", named)
    if vlm.family.other_placeholder:
        known = [vlm.image_token_id]
    if vlm.image_token_id not in known or vlm.image_token_id == vlm.tokenizer.unk_token_id:
        raise ValueError(
            f"{vlm.name}: the image token is id {vlm.image_token_id} in config.json, "
            f"{' or '.join(map(str, known))} in the processor, and {vlm.tokenizer.unk_token_id} is "
            "an unknown word: config.json and tokenizer do not belong together, "
            "fetch the checkpoint again"
        )
    enc = vlm.encode([shown, blind])
    rows = ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")
    pixels = {k: v for k, v in enc.inputs.items() if k not in ("input_ids", *rows)}
    with weights_here(vlm.model):
        features = image_features(vlm, pixels)
    n_features = sum(part.shape[:-1].numel() for part in features)
    n_places = int(enc.is_image.sum())
    if n_places != n_features or n_places == 0:
        raise ValueError(
            f"{vlm.name}: {n_places} image placeholders but {n_features} image features: "
            "processor and model disagree on the patches of an image, fix processor_config.json"
        )

    ids, attended = enc.inputs["input_ids"], enc.inputs["attention_mask"].bool()
    rest = attended & not_text(vlm, ids) & (ids != vlm.image_token_id)
    overlap = int((enc.is_image & enc.is_text).sum())
    covered, total = int((enc.is_image | enc.is_text | rest).sum()), int(attended.sum())
    if overlap or covered != total or not enc.is_text.any(-1).all():
        raise ValueError(
            f"{vlm.name}: {overlap} tokens are both image and text, {covered} of {total} have a "
            f"type, {int(enc.is_text.sum())} are text: its special tokens do not fit its template"
        )

    seen: list[tuple[int, torch.Size]] = []
    logits = capture(
        vlm, enc, lambda layer, state: seen.append((layer, state.shape)), logits_to_keep=0
    )
    expected = [
        (layer, torch.Size((*ids.shape, vlm.hidden_size))) for layer in range(vlm.n_layers + 1)
    ]
    if seen != expected:
        raise ValueError(
            f"{vlm.name}: {len(seen)} states were captured, {len(expected)} of shape "
            f"{tuple(expected[0][1])} expected: its decoder layers are not run once each in order"
        )
    plain = vlm.model(**enc.inputs, use_cache=False).logits
    gap = float((plain - logits)[attended].abs().max())
    # Bit for bit where arithmetic is deterministic; GPU kernels may order their sums differently.
    if gap > (0.0 if vlm.device.type == "cpu" else 1e-2 * float(plain[attended].abs().max())):
        raise ValueError(
            f"{vlm.name}: hooks that do nothing change the logits by {gap:g}, expected 0"
        )
    if not unkeyed(vlm):  # states can be measured there, and nothing else
        prefill(vlm, enc, torch.ones_like(enc.is_image))
