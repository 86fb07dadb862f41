"""Samples become model inputs with masks that say which token is image and which is text."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from visdepth_utils.data.images import BadRow
from visdepth_utils.data.samples import Sample, describe
from visdepth_utils.models.prompts import non_text_ids, prompts, words_only

if TYPE_CHECKING:
    from visdepth_utils.models.vlm import VLM


@dataclass(frozen=True, eq=False)
class Encoded:
    """A batch of B samples, left-padded to S tokens."""

    inputs: dict[str, torch.Tensor]  # what ``model(**inputs)`` takes
    is_image: torch.Tensor  # bool (B, S), placeholders that image features replace, in any spans
    is_text: torch.Tensor  # bool (B, S), all others but specials, structural tokens and padding
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


def not_text(vlm: VLM, ids: torch.Tensor) -> torch.Tensor:
    """Where there is no text among ids (B, S), bool.

    That is: the ids of ``non_text_ids``, and white space that touches an image's image or
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

    A sample with ``images=()`` is encoded without image. ``with_reference`` appends the reference
    after the generation prompt (teacher forcing).

    Raises:
        ValueError: No samples; a chat template or processor that fails; processor outputs missing
            that the family needs.
        BadRow: A sample at fault, by name: an image that is missing, unreadable or of a shape that
            the processor does not take; a control token that cannot be read as text; more tokens
            than the model's context.
    """
    if not samples:
        raise ValueError("no samples to encode: give at least one")
    if with_reference and not vlm.family.causal_prefix:
        # A reference within the prompt's text would be part of the prefix read both ways.
        return append_tokens(vlm, encode(vlm, samples), reference_ids(vlm, samples))
    texts = prompts(vlm, list(samples), with_reference)
    images = [[_rgb(image, sample) for image in sample.images] for sample in samples]
    if vlm.family.needs_image and not all(images):
        blind = next(s.id for s, row in zip(samples, images, strict=True) if not row)
        raise ValueError(
            f"sample {blind!r} has no image, and {vlm.family.model_type} takes none without: "
            "give every sample an image"
        )
    try:
        batch = _processed(vlm, texts, images)
    except MemoryError:
        raise
    except Exception as error:  # whatever a processor does not foresee
        raise _blamed(vlm, samples, texts, images, error) from error
    lacking = [key for key in vlm.family.required_keys if key not in batch]
    if lacking:
        raise ValueError(
            f"the processor of {vlm.name} returned no {', '.join(lacking)}: without it "
            f"{vlm.family.model_type} computes wrong positions or masks; "
            "save the checkpoint's processor again with transformers 5"
        )
    return _masked(vlm, batch, tuple(samples))


def _processed(
    vlm: VLM, texts: list[str], images: list[list[Image.Image]]
) -> dict[str, torch.Tensor]:
    """What the processor makes of prompts and their pictures."""
    flat = [image for row in images for image in row]
    bos = vlm.tokenizer.bos_token
    return dict(
        vlm.processor(
            text=texts,
            images=(images if vlm.family.nested_images else flat) if flat else None,
            padding=True,
            return_tensors="pt",
            # Templates that write the BOS token themselves would get it twice.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )
    )


def _blamed(
    vlm: VLM,
    samples: Sequence[Sample],
    texts: list[str],
    images: list[list[Image.Image]],
    error: Exception,
) -> ValueError:
    """Why the processor failed: a picture, if it takes a plain one in its place; else its files."""
    for sample, text, row in zip(samples, texts, images, strict=True):
        try:
            _processed(vlm, [text], [row])
        except Exception as own:
            plain = [[Image.new("RGB", (64, 64), "grey") for _ in row]]
            with contextlib.suppress(Exception):
                _processed(vlm, [text], plain)
                return _bad_picture(vlm, sample, row, " ".join(str(own).split()))
    why = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    return ValueError(
        f"the processor of {vlm.name} fails on {describe(samples)} ({why}): its chat template or "
        "processor files do not fit, fetch the checkpoint again"
    )


def _bad_picture(vlm: VLM, sample: Sample, row: Sequence[Image.Image], why: str) -> BadRow:
    """A picture that this model cannot take."""
    sizes = ", ".join(f"{image.width} x {image.height}" for image in row)
    return BadRow(
        f"sample {sample.id!r}: {vlm.name} cannot take its picture of {sizes} pixels: give one of "
        f"a more usual size and shape, or leave the row out ({why:.120})"
    )


def append_tokens(vlm: VLM, enc: Encoded, answers: Sequence[Sequence[int]]) -> Encoded:
    """Append token ids to B encoded prompts, as if the model had generated them.

    A decoded answer does not always encode to its own tokens again; this needs no text. ValueError:
    another number of answers than rows, or an empty one (names the sample).
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


def reference_ids(vlm: VLM, samples: Sequence[Sample]) -> list[list[int]]:
    """Token ids of each sample's reference alone, all text; BadRow as ``words_only``."""
    write = words_only(vlm)
    texts = [write(sample.reference, sample.id) for sample in samples]
    return [vlm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _masked(vlm: VLM, batch: dict[str, torch.Tensor], samples: tuple[Sample, ...]) -> Encoded:
    """Keep what the model takes, add position ids where they are plain counts, derive the masks."""
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()
    is_image = (ids == vlm.image_token_id) & attended
    is_text = attended & ~not_text(vlm, ids)
    _check_counts(vlm, samples, attended.sum(-1).tolist(), is_image.sum(-1).tolist())
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


def _check_counts(
    vlm: VLM, samples: Sequence[Sample], tokens: Sequence[int], image: Sequence[int]
) -> None:
    """Refuse rows that are longer than the model's context, or whose picture is too small."""
    context = getattr(vlm.model.config.get_text_config(), "max_position_embeddings", None)
    for sample, n, n_image in zip(samples, tokens, image, strict=True):
        if sample.images and n_image < vlm.family.least_image_tokens:
            why = f"image tokens: {n_image}, at least needed: {vlm.family.least_image_tokens}"
            raise _bad_picture(vlm, sample, sample.images, why)
        if context and n > context:
            raise BadRow(
                f"sample {sample.id!r}: its prompt has {n} tokens ({n_image} of its pictures), "
                f"{vlm.name} takes {context} (max_position_embeddings): shorten it, or leave the "
                "row out"
            )


def _rgb(image: Image.Image | None, sample: Sample) -> Image.Image:
    """A decoded RGB image, or an error that names the sample."""
    if not isinstance(image, Image.Image):
        raise BadRow(
            f"sample {sample.id!r}: image {sample.image_id!r} is missing "
            f"(got {type(image).__name__}): give a PIL image, or images=() for a blind sample"
        )
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise BadRow(
            f"sample {sample.id!r}: image {sample.image_id!r} cannot be decoded ({error}); "
            "replace the file"
        ) from error
