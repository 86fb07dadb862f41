"""Groups of tokens for comparing text with image tokens: what each holds, and where it stands.

The model reads the prompt and then its own greedy output. A second pass has text in the
image's slots: the only way in which text can stand where the image stood, as a sequence has one
order and attention looks backwards.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import Sample
from visdepth_utils.data.tasks import Task
from visdepth_utils.measure.geometry.layer_geometry import tables, token_geometry
from visdepth_utils.models.encoding import Encoded, append_tokens, reference_ids
from visdepth_utils.models.generation import decode_answers, generated, stop_ids, without_end
from visdepth_utils.models.prompts import non_text_ids
from visdepth_utils.models.vlm import VLM

GROUPS = ("image", "text")
"""What is compared: image tokens, and all text after the picture."""
BESIDE = ("prompt", "generated", "shuffled image", "shuffled text")
"""Parts of the text, and the same two counts of tokens drawn from both."""
IN_PLACE, NO_PICTURE = "text in the image's places", "text without picture"


def own_answers(
    vlm: VLM, task: Task, batch_size: int = 16, progress: Progress | None = None
) -> pd.DataFrame:
    """The model's own greedy outputs as tokens, to be read again.

    One row per sample: ``sample``, ``ids`` (without the token that ends it; that token alone where
    there is no other) and ``output``.
    """
    stop, samples, rows = stop_ids(vlm), task.samples, []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        for sample, new in zip(
            part, generated(vlm, vlm.encode(part), task.max_new_tokens).tolist(), strict=True
        ):
            ids = without_end(new, stop)[0] or new[:1]
            (text,) = decode_answers(vlm, [new])
            rows.append({"sample": sample.id, "ids": ids, "output": text})
        if progress:
            progress(len(rows), len(samples), "own output")
    return pd.DataFrame(rows)


def text_geometry(
    vlm: VLM,
    task: Task | Sequence[Sample],
    answers: pd.DataFrame,
    *,
    groups: Sequence[str] = GROUPS,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """``layer_geometry`` of image tokens and of text, prompt and output read in one pass.

    ``answers``: of ``own_answers``; of another model, whose text is then read, it is a control.
    ``groups``, out of GROUPS and BESIDE, stand in the column ``modality``. The seed is that of the
    draws and of the shuffled labels; ``settings`` are those of ``layer_geometry``. ValueError: an
    unknown group, a sample without an answer, or a wrong setting.
    """
    if unknown := [name for name in groups if name not in (*GROUPS, *BESIDE)]:
        raise ValueError(f"unknown group {unknown[0]!r}: use {', '.join((*GROUPS, *BESIDE))}")
    samples = list(getattr(task, "samples", task))

    def measure(block: list[Sample], _rows: int) -> list[pd.DataFrame]:
        enc, said = _read(vlm, block, answers)
        masks = _groups(enc, said, seed)
        chosen = {name: masks[name] for name in groups}
        return [token_geometry(vlm, enc, chosen, seed=seed, **settings)]

    return tables(samples, batch_size, measure, progress)


def placed_geometry(
    vlm: VLM,
    task: Task | Sequence[Sample],
    answers: pd.DataFrame,
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """``text_geometry`` without the picture: text of other samples stands in the image's slots.

    Modalities are ``IN_PLACE`` (the slots) and ``NO_PICTURE`` (question and output). ValueError
    also where there is no text to fill the slots with.
    """
    samples = list(getattr(task, "samples", task))
    others = _others(vlm, samples)

    def measure(block: list[Sample], _rows: int) -> list[pd.DataFrame]:
        enc, said = _read(vlm, block, answers)
        text = _groups(enc, said, seed)["text"]
        filled, slots = with_filler(enc, [others[sample.id] for sample in block])
        chosen = {IN_PLACE: slots, NO_PICTURE: text}
        return [token_geometry(vlm, filled, chosen, seed=seed, **settings)]

    return tables(samples, batch_size, measure, progress)


def with_filler(enc: Encoded, filler: Sequence[Sequence[int]]) -> tuple[Encoded, torch.Tensor]:
    """Put text into the image's slots; nothing moves.

    ``filler`` holds ids for each of B samples, repeated or cut to the number of its slots. Gives
    the batch without pictures, and the slots, bool (B, S).
    """
    slots, inputs = enc.is_image, {}
    for key, value in enc.inputs.items():
        if value.shape != slots.shape:
            continue  # pixels and their sizes
        if key == "input_ids":
            value = value.clone()
            for b, ids in enumerate(filler):
                value[b, slots[b]] = torch.as_tensor(np.resize(ids, int(slots[b].sum()))).to(value)
        elif key in ("token_type_ids", "mm_token_type_ids"):
            value = value.masked_fill(slots, 0)
        inputs[key] = value
    filled = replace(
        enc, inputs=inputs, is_image=torch.zeros_like(slots), is_text=enc.is_text | slots
    )
    return filled, slots


def _read(
    vlm: VLM, samples: Sequence[Sample], answers: pd.DataFrame
) -> tuple[Encoded, torch.Tensor]:
    """Prompts followed by their answers, and where the answers stand, bool (B, S)."""
    known = dict(zip(answers["sample"], answers["ids"], strict=True))
    if lacking := [sample.id for sample in samples if sample.id not in known]:
        raise ValueError(f"sample {lacking[0]!r} has no answer: make them with own_answers")
    ids = [[int(token) for token in known[sample.id]] for sample in samples]
    enc = append_tokens(vlm, vlm.encode(samples), ids)
    said = torch.zeros_like(enc.is_text)
    for b, answer in enumerate(ids):
        said[b, -len(answer) :] = True
    return enc, said


def _groups(enc: Encoded, said: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
    """All groups of GROUPS and BESIDE, bool (B, S) each."""
    image = enc.is_image
    # A sample without a picture has nothing after it: all its text counts.
    after = enc.is_text & (image.flip(1).cumsum(1).flip(1) == 0)
    groups = {"image": image, "text": after}
    groups |= {"prompt": enc.is_text & ~said, "generated": enc.is_text & said}
    a, b = torch.zeros_like(image), torch.zeros_like(image)
    for row, sample in enumerate(enc.samples):
        both = (image | after)[row].nonzero()[:, 0].cpu().numpy()
        key = hashlib.sha256(f"{sample.id}|labels|{seed}".encode()).digest()
        mixed = np.random.default_rng(list(key)).permutation(both)
        n = int(image[row].sum())
        a[row, mixed[:n]], b[row, mixed[n:]] = True, True
    return groups | {"shuffled image": a, "shuffled text": b}


def _others(vlm: VLM, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """For each sample the tokens of all other samples' references, from the next one on."""
    never = set(non_text_ids(vlm).tolist())
    texts = [[t for t in ids if t not in never] for ids in reference_ids(vlm, samples)]
    out = {}
    for i, sample in enumerate(samples):
        rest = texts[i + 1 :] + texts[:i]
        out[sample.id] = [token for text in rest for token in text]
        if not out[sample.id]:
            raise ValueError(
                f"sample {sample.id!r}: no other sample's reference has text to fill in"
            )
    return out
