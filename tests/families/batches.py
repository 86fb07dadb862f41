"""Batches for tiny models, without a processor: a test decides where images and padding stand."""

from collections.abc import Sequence

import torch

from tests.families.models import MADE
from tests.families.pictures import FIRST_WORD, IMAGE, PAD, VOCAB
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.families import FAMILIES

Prompt = tuple[int, ...]
"""Positive numbers are runs of words, negative ones images: -1 small, -2 large where it can be."""


def batch(
    name: str, prompts: Sequence[Prompt], seeds: Sequence[int] | None = None, pad: int = 0
) -> Encoded:
    """Prompts, each with at least one image, as a left-padded batch.

    Args:
        name: Family.
        prompts: One per sample.
        seeds: One per sample, for its words and pixels; None for 0, 1, ...
        pad: Further padding in front of the longest prompt.

    Returns:
        What ``vlm.encode`` would return, without samples.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    images = [
        [(part, 1000 * seed + i) for i, part in enumerate(prompt) if part < 0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    blocks, given = MADE[name].pictures(images)
    rows = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        rng = torch.Generator().manual_seed(seed)
        row: list[int] = []
        for part in prompt:
            words = torch.randint(FIRST_WORD, VOCAB, (abs(part),), generator=rng).tolist()
            row += blocks[part] if part < 0 else words
        rows.append(row)
    width = max(map(len, rows)) + pad
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    attended = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return encoded(name, ids, attended, given)


def encoded(name: str, ids: torch.Tensor, attended: torch.Tensor, given: dict) -> Encoded:
    """Token ids (B, S) and pixels as the family's forward pass takes them."""
    family = FAMILIES[name]
    is_image = ids == IMAGE
    inputs = {"input_ids": ids, "attention_mask": attended, **given}
    if family.positions == "1d":
        inputs["position_ids"] = (attended.cumsum(-1) - 1).clamp(min=0)
    if "mm_token_type_ids" in family.required_keys:
        inputs["mm_token_type_ids"] = is_image.long()
    if name == "gemma3":
        inputs["token_type_ids"] = is_image.long()
    if name == "paligemma":
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return Encoded(inputs, is_image, attended.bool() & (ids >= FIRST_WORD), ())
