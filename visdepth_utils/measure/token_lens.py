"""What image tokens say at each depth, in words of the vocabulary or of sentences.

Two readings of one state: by the model's own final norm and head, as if the decoder ended there
(logit lens, nostalgebraist 2020), and by the text state of the same layer that it is most like
(after LatentLens, arXiv 2602.00462, which searches the states of many layers and a larger bank).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import LABELS, Sample
from visdepth_utils.data.tasks import Task
from visdepth_utils.data.worlds.truth import Held, sentences
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.hooks import capture, hooked
from visdepth_utils.models.parts import head
from visdepth_utils.models.prompts import non_text_ids
from visdepth_utils.models.vlm import VLM

LENSES = ("logit", "text")
TOKENS_AT_ONCE = 256
LEAST_COVERED = 0.25
"""Share of a patch that an object's box covers at least where the patch is said to hold it."""
COLUMNS = (*LABELS, "layer", "token", "row", "column", "lens", "words", "score")


@dataclass(frozen=True, eq=False)
class Bank:
    """States of N text tokens in context, scaled to length 1, and which word each is."""

    states: list[torch.Tensor]  # L+1 (N, D), fp32
    words: list[str]  # each once
    word: torch.Tensor  # (N,), its number in ``words``


def token_lens(
    vlm: VLM,
    samples: Task | Sequence[Sample],
    *,
    modality: str = "image",
    bank: Sequence[str] | None = None,
    lenses: Sequence[str] = LENSES,
    top: int = 5,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The words that each image token is nearest to, at every depth.

    One plain pass per sample, and one of the decoder alone per sentence of the bank.

    Args:
        vlm: The model.
        samples: A task, or samples.
        modality: ``"image"``, or ``"text"`` to read the prompt's own words in the same way.
        bank: Sentences whose tokens in context are the candidates of the text lens; None for
            captions and questions of the embedded worlds. Give sentences about your own pictures.
        lenses: ``"logit"``, ``"text"`` or both.
        top: How many words of each token.
        progress: Called with (done, total, label).

    Returns:
        One row per sample, layer, token and lens: ``sample, image, task, kind, style, layer``
        (0..L: the state that goes into the layer; L comes out of the last), ``token`` (its number
        among those of the modality), ``row, column`` (where it lies in the picture; missing where
        ``token_grid`` does not know), ``lens, words`` (nearest first, each once) and ``score`` of
        the first: probability (logit), or cosine similarity (text). Of a word that takes several
        tokens, only the one token is told.

    Raises:
        ValueError: An unknown lens or modality, top below 1, a bank without words, or NaN.
    """
    if unknown := set(lenses) - set(LENSES) or {modality} - {"image", "text"}:
        known = f"lenses are {LENSES}, modalities 'image' and 'text'"
        raise ValueError(f"{min(unknown)!r} is unknown: {known}")
    if top < 1:
        raise ValueError(f"top={top}: give at least 1")
    text = text_bank(vlm, sentences() if bank is None else bank) if "text" in lenses else None
    samples = list(getattr(samples, "samples", samples))
    parts = [pd.DataFrame(columns=list(COLUMNS))]
    for done, sample in enumerate(samples, 1):
        enc = vlm.encode([sample])
        grid = token_grid(vlm, enc)[0] if modality == "image" else None
        part = _read(vlm, enc, modality, lenses, text, top).assign(**sample.labels())
        places = divmod(part["token"], grid[1]) if grid else (pd.NA, pd.NA)
        part = part.assign(row=places[0], column=places[1])
        parts.append(part[list(COLUMNS)].astype({"row": "Int64", "column": "Int64"}))
        if progress:
            progress(done, len(samples), "token lens")
    return pd.concat(parts[1:] or parts, ignore_index=True)


@torch.no_grad()
def text_bank(vlm: VLM, texts: Sequence[str]) -> Bank:
    """States of all words of some sentences, each passed through the decoder without a picture.

    ValueError: no words, or NaN.
    """
    never, decoder = set(non_text_ids(vlm).tolist()), vlm.model.get_decoder()
    found: list[list[torch.Tensor]] = [[] for _ in range(vlm.n_layers + 1)]
    words: list[str] = []
    for text in texts:  # one by one: where text is read both ways, padding would change it
        ids = vlm.tokenizer(text)["input_ids"]
        kept = [i for i, token in enumerate(ids) if token not in never]

        def visitor(layer: int, state: torch.Tensor, kept: list[int] = kept) -> None:
            found[layer].append(torch.nn.functional.normalize(state[0, kept], dim=-1))

        with hooked(vlm, visitor):
            decoder(torch.tensor([ids], device=vlm.device), use_cache=False)
        words += [vlm.tokenizer.decode([ids[i]]).strip() for i in kept]
    if not words:
        raise ValueError("the bank of sentences has no words: give at least one sentence")
    states, known = [torch.cat(layer) for layer in found], list(dict.fromkeys(words))
    if not all(bool(torch.isfinite(layer).all()) for layer in states):
        raise ValueError(f"{vlm.name} makes NaN or infinity of a sentence without a picture")
    return Bank(states, known, torch.tensor([known.index(w) for w in words], device=vlm.device))


def token_grid(vlm: VLM, enc: Encoded) -> list[tuple[int, int] | None]:
    """Rows and columns of each sample's image tokens, where they are one picture's in order.

    None for several pictures or none, and in families whose tokens are of tiles or have row ends
    among them; there, which patch a token is of is not known.
    """
    found: list[tuple[int, int] | None] = []
    sizes = enc.inputs.get("image_grid_thw")
    for number, (sample, mask) in enumerate(zip(enc.samples, enc.is_image, strict=True)):
        n, grid = int(mask.sum()), (0, 0)
        if len(sample.images) == 1:
            width, height = sample.images[0].size
            if sizes is not None and len(sizes) == len(enc.samples):
                merge = vlm.model.config.vision_config.spatial_merge_size
                grid = (int(sizes[number][1]) // merge, int(sizes[number][2]) // merge)
            elif vlm.family.square_grid and width == height:
                grid = (round(n**0.5), round(n**0.5))
        found.append(grid if n and grid[0] * grid[1] == n else None)
    return found


def named_share(
    table: pd.DataFrame, held: Mapping[str, Sequence[Held]], *, top: int = 1
) -> pd.DataFrame:
    """Share of image tokens whose words name what their patch holds, by sample, depth and lens.

    Counted are the tokens whose patch holds an object (LEAST_COVERED). Chance: the same tokens and
    words, and in place of each object one of another picture, averaged over all other pictures.
    ``table`` is of ``token_lens``, ``held`` of ``held_objects``; one of a token's first ``top``
    words must name the object. Columns: ``sample, image, layer, lens, labels`` (``"own"`` or
    ``"other pictures"``), ``value`` (0..1), ``n_tokens``; empty where no truth or grid is known.
    """
    known = table[table["row"].notna() & table["image"].isin(list(held))]
    out: list[dict[str, Any]] = []
    for (sample, image), rows in known.groupby(["sample", "image"], sort=False):
        size = (int(rows["row"].max()) + 1, int(rows["column"].max()) + 1)
        covers = covered(held[image], *size)
        strange = [held[name] for name in known["image"].unique() if name != image and held[name]]
        for (layer, lens), at in rows.groupby(["layer", "lens"], sort=False):
            said = dict(zip(at["token"], at["words"], strict=True))
            said = {token: set(words[:top]) for token, words in said.items() if covers[token]}
            for labels, pictures in (("own", [held[image]]), ("other pictures", strange)):
                hits = [
                    bool(
                        words & {w for k in covers[token] for w in objects[k % len(objects)].words}
                    )
                    for objects in pictures
                    for token, words in said.items()
                ]
                row = {"sample": sample, "image": image, "layer": layer, "lens": lens}
                value = float(np.mean(hits)) if hits else float("nan")
                out.append({**row, "labels": labels, "value": value, "n_tokens": len(said)})
    columns = ["sample", "image", "layer", "lens", "labels", "value", "n_tokens"]
    return pd.DataFrame(out, columns=columns)


def covered(
    held: Sequence[Held], rows: int, columns: int, least: float = LEAST_COVERED
) -> list[list[int]]:
    """By patch in reading order, the numbers of the objects whose box covers so much of it."""
    out = []
    for row, column in itertools.product(range(rows), range(columns)):
        shares = [
            max(0.0, min(right * columns, column + 1) - max(left * columns, column))
            * max(0.0, min(bottom * rows, row + 1) - max(top * rows, row))
            for left, top, right, bottom in (one.box for one in held)
        ]
        out.append([k for k, share in enumerate(shares) if share >= least])
    return out


def _read(
    vlm: VLM, enc: Encoded, modality: str, lenses: Sequence[str], bank: Bank | None, top: int
) -> pd.DataFrame:
    """Words and scores of one sample's tokens at every layer."""
    states: list[torch.Tensor] = []
    chosen = enc.mask(modality)[0]
    capture(vlm, enc, lambda _, state: states.append(state[0, chosen]))
    parts = []
    for layer, state in enumerate(states) if len(states[0]) else ():
        for lens in lenses:
            text = lens == "text"
            read = _by_text(bank, layer, state, top) if text else _by_head(vlm, state, top)
            parts += [(layer, lens, *one) for one in zip(range(len(state)), *read, strict=True)]
    return pd.DataFrame(parts, columns=["layer", "lens", "token", "words", "score"])


def _by_head(vlm: VLM, state: torch.Tensor, top: int) -> tuple[list[list[str]], list[float]]:
    """Likeliest words of states (T, D), each once, and the first one's probability."""
    parts = [head(vlm, some.to(vlm.dtype)).softmax(-1) for some in state.split(TOKENS_AT_ONCE)]
    found = [part.topk(min(top, part.shape[-1])) for part in parts]
    ids = torch.cat([part.indices for part in found])
    names = {i: vlm.tokenizer.decode([i]).strip() for i in ids.unique().tolist()}
    words = [list(dict.fromkeys(names[i] for i in row)) for row in ids.tolist()]
    return words, torch.cat([part.values[:, 0] for part in found]).tolist()


def _by_text(
    bank: Bank, layer: int, state: torch.Tensor, top: int
) -> tuple[list[list[str]], list[float]]:
    """Words of the bank whose states are most like states (T, D), and the first one's cosine."""
    like = torch.nn.functional.normalize(state, dim=-1) @ bank.states[layer].T
    best = like.new_full((len(like), len(bank.words)), -2)
    best = best.scatter_reduce(1, bank.word.expand(len(like), -1), like, "amax")
    values, order = best.topk(min(top, len(bank.words)))
    return [[bank.words[i] for i in row] for row in order.tolist()], values[:, 0].tolist()
