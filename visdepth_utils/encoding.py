"""Samples become model inputs with masks that say which token is image and which is text."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from PIL import Image

from visdepth_utils.datasets import Sample
from visdepth_utils.engine import describe

if TYPE_CHECKING:
    from visdepth_utils.vlm import VLM


@dataclass(frozen=True, eq=False)
class Encoded:
    """A batch of B samples, left-padded to S tokens.

    Attributes:
        inputs: What ``model(**inputs)`` takes.
        is_image: bool (B, S), placeholders that image features replace; any number of spans per
            row.
        is_text: bool (B, S), all other tokens except specials, structural tokens and padding.
        samples: The B samples.
    """

    inputs: dict[str, torch.Tensor]
    is_image: torch.Tensor
    is_text: torch.Tensor
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def mask(self, modality: str) -> torch.Tensor:
        """The mask of ``"image"`` or ``"text"``, bool (B, S)."""
        return {"image": self.is_image, "text": self.is_text}[modality]

    def to(self, device: torch.device | str) -> Encoded:
        """The same batch on another device."""
        moved = {key: value.to(device) for key, value in self.inputs.items()}
        return replace(
            self, inputs=moved, is_image=self.is_image.to(device), is_text=self.is_text.to(device)
        )


def non_text_ids(vlm: VLM) -> torch.Tensor:
    """Ids that are never text.

    Args:
        vlm: Whose tokenizer and family are asked.

    Returns:
        int64 (K,): all special tokens of the tokenizer, the family's structural tokens, the image
        token.
    """
    tokenizer = vlm.tokenizer
    ids = {vlm.image_token_id, *tokenizer.all_special_ids}
    ids |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    known = tokenizer.get_vocab()
    ids |= {known[token] for token in vlm.family.structural_tokens if token in known}
    return torch.tensor(sorted(ids))


def not_text(vlm: VLM, ids: torch.Tensor) -> torch.Tensor:
    """Where there is no text.

    Args:
        vlm: Whose tokenizer and family are asked.
        ids: int64 (B, S).

    Returns:
        Bool (B, S): the ids of ``non_text_ids``, and white space that touches an image's image or
        structural tokens, directly or through its like, in families whose processor writes it.
    """
    never = torch.isin(ids, non_text_ids(vlm).to(ids.device))
    if not vlm.family.blank_borders:
        return never
    tokenizer, known = vlm.tokenizer, vlm.tokenizer.get_vocab()
    own = [known[token] for token in vlm.family.structural_tokens if token in known]
    inside = torch.isin(ids, torch.tensor([vlm.image_token_id, *own], device=ids.device))
    spaces = [i for i in ids.unique().tolist() if tokenizer.decode([i]).isspace()]
    blank = torch.isin(ids, torch.tensor(spaces, dtype=ids.dtype, device=ids.device))
    while True:
        edge = torch.nn.functional.pad(inside, (1, 1))
        grown = inside | (blank & (edge[:, :-2] | edge[:, 2:]))
        if torch.equal(grown, inside):
            return never | inside
        inside = grown


def encode(vlm: VLM, samples: Sequence[Sample], with_reference: bool = False) -> Encoded:
    """Apply the chat template, tokenise, pad on the left, and mark image and text.

    Args:
        vlm: The model to encode for.
        samples: At least one; a sample with ``images=()`` is encoded without image.
        with_reference: Append the reference after the generation prompt (teacher forcing).

    Returns:
        The batch on the model's device.

    Raises:
        ValueError: No samples; an image that is missing or unreadable (names the sample); a prompt
            that contains the image placeholder; processor outputs missing that the family needs.
    """
    if not samples:
        raise ValueError("no samples to encode: give at least one")
    if with_reference and not vlm.family.causal_prefix:
        return _answered(vlm, samples)
    texts = [_text(vlm, sample, with_reference) for sample in samples]
    images = [[_rgb(image, sample) for image in sample.images] for sample in samples]
    flat = [image for row in images for image in row]
    if vlm.family.needs_image and not all(images):
        blind = next(s.id for s, row in zip(samples, images, strict=True) if not row)
        raise ValueError(
            f"sample {blind!r} has no image, and {vlm.family.model_type} takes none without: "
            "give every sample an image"
        )
    bos = vlm.tokenizer.bos_token
    try:
        batch = vlm.processor(
            text=texts,
            images=(images if vlm.family.nested_images else flat) if flat else None,
            padding=True,
            return_tensors="pt",
            # Templates that write the BOS token themselves would get it twice.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"the processor of {vlm.name} fails on {describe(samples)} "
            f"({type(error).__name__}: {' '.join(str(error).split()):.200}): its chat template or "
            "processor files do not fit, fetch the checkpoint again"
        ) from error
    lacking = [key for key in vlm.family.required_keys if key not in batch]
    if lacking:
        raise ValueError(
            f"the processor of {vlm.name} returned no {', '.join(lacking)}: without it "
            f"{vlm.family.model_type} computes wrong positions or masks; "
            "save the checkpoint's processor again with transformers 5"
        )
    return _masked(vlm, dict(batch), tuple(samples))


def followed(vlm: VLM, enc: Encoded, answers: Sequence[Sequence[int]]) -> Encoded:
    """Append token ids to encoded prompts, as if the model had generated them.

    A decoded answer does not always encode to its own tokens again; this needs no text.

    Args:
        vlm: The model.
        enc: B prompts, padded on the left.
        answers: Ids of each row, at least one each.

    Returns:
        The longer batch, rows ending with their answers.

    Raises:
        ValueError: Another number of answers than rows, or an empty one (names the sample).
    """
    n_rows, n = enc.is_image.shape
    if len(answers) != n_rows:
        raise ValueError(f"{len(answers)} answers for {n_rows} rows: give one per row")
    if empty := [b for b, ids in enumerate(answers) if not len(ids)]:
        raise ValueError(f"sample {enc.samples[empty[0]].id!r}: its answer has no token")
    longest = max(len(ids) for ids in answers)

    def grown(table: torch.Tensor, before: int, new: Sequence[Any]) -> torch.Tensor:
        out = table.new_full((n_rows, n + longest), before)
        for b, values in enumerate(new):
            out[b, longest - len(values) : -len(values)] = table[b]
            out[b, -len(values) :] = torch.as_tensor(values).to(table)
        return out

    def constant(value: int) -> list[list[int]]:
        return [[value] * len(ids) for ids in answers]

    inputs = dict(enc.inputs)
    # A prefix that is read in both directions ends where the answer begins.
    types = int(not vlm.family.causal_prefix)
    fills = {"attention_mask": 1, "token_type_ids": types}
    for key, value in enc.inputs.items():
        if key == "input_ids":
            inputs[key] = grown(value, vlm.tokenizer.pad_token_id or 0, answers)
        elif value.shape == enc.is_image.shape:
            inputs[key] = grown(value, 0, constant(fills.get(key, 0)))
    if "position_ids" in inputs:
        inputs["position_ids"] = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp(min=0)
    never = set(non_text_ids(vlm).tolist())
    said = [[i not in never for i in ids] for ids in answers]
    return Encoded(
        inputs, grown(enc.is_image, 0, constant(0)), grown(enc.is_text, 0, said), enc.samples
    )


def _answered(vlm: VLM, samples: Sequence[Sample]) -> Encoded:
    """Prompts with their references behind them, where a prefix is read in both directions.

    A reference within the prompt's text would be part of that prefix.
    """
    references = [
        vlm.tokenizer(sample.reference, add_special_tokens=False)["input_ids"] for sample in samples
    ]
    return followed(vlm, encode(vlm, samples), references)


def _masked(vlm: VLM, batch: dict[str, torch.Tensor], samples: tuple[Sample, ...]) -> Encoded:
    """Keep what the model takes, add position ids where they are plain counts, derive the masks."""
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()
    is_image = (ids == vlm.image_token_id) & attended
    is_text = attended & ~not_text(vlm, ids)
    if vlm.family.positions == "1d":
        # Without them a bare forward counts padding too, while generate does not.
        batch["position_ids"] = (attended.long().cumsum(-1) - 1).clamp(min=0)
    accepted = set(inspect.signature(vlm.model.forward).parameters) - {"labels"}
    if "token_type_ids" not in vlm.family.required_keys:
        accepted.discard("token_type_ids")
    inputs = {
        key: value.to(vlm.dtype) if value.is_floating_point() else value
        for key, value in batch.items()
        if key in accepted
    }
    return Encoded(inputs, is_image, is_text, samples).to(vlm.device)


def _text(vlm: VLM, sample: Sample, with_reference: bool) -> str:
    """The templated prompt of one sample, with its reference if asked for."""
    own = vlm.tokenizer.convert_ids_to_tokens(vlm.image_token_id)
    for token in {getattr(vlm.processor, "image_token", None) or own, own}:
        if token in sample.prompt + sample.reference * with_reference:
            raise ValueError(
                f"sample {sample.id!r}: its text contains the image placeholder {token!r}: "
                "remove it, images are placed by the chat template"
            )
    content = [{"type": "image"} for _ in sample.images] + [{"type": "text", "text": sample.prompt}]
    try:
        text = vlm.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    except TemplateError as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"the chat template of {vlm.name} fails on sample {sample.id!r} "
            f"({type(error).__name__}: {why:.200}): fetch the checkpoint again, or mend its "
            "chat_template.jinja"
        ) from error
    if with_reference:
        # "ASSISTANT:" wants a space before the answer; a template that ends in a line feed or in a
        # special token does not.
        ends_special = any(text.endswith(token) for token in vlm.tokenizer.all_special_tokens)
        text += ("" if text[-1:].isspace() or ends_special else " ") + sample.reference
    return text


def _rgb(image: Image.Image | None, sample: Sample) -> Image.Image:
    """A decoded RGB image, or an error that names the sample."""
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"sample {sample.id!r}: image {sample.image_id!r} is missing "
            f"(got {type(image).__name__}): give a PIL image, or images=() for a blind sample"
        )
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"sample {sample.id!r}: image {sample.image_id!r} cannot be decoded ({error}); "
            "replace the file"
        ) from error
