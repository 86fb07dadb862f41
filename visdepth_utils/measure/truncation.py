"""Truncation at every depth in one pass: answers, their scores, the first token's divergence."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import LABELS, Sample
from visdepth_utils.data.tasks import Task, other_images, samples_and_budget
from visdepth_utils.measure import physical
from visdepth_utils.measure.batching import choose_max_rows, chunks, in_blocks
from visdepth_utils.measure.patching.branches import (
    MODES,
    Branches,
    check_depths,
    image_spans,
    kept_for_truncation,
    truncation,
)
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import Index, Prefill, prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun
from visdepth_utils.measure.scores import score
from visdepth_utils.measure.similarity import text_scores
from visdepth_utils.models.generation import decode_answers, stop_ids, without_end
from visdepth_utils.models.vlm import VLM

FROZEN_OTHER = ("freeze other image", "freeze noise")
"""Controls of ``"freeze"``: other states stay readable in the place of the image's own."""
NOISE_IMAGES, NOISE_TOKENS = 16, 64
"""Pictures, and tokens of each, that the moments of the noise come from."""

SCORES = ("correct", "same", "bleu", "rouge", "chrf", "bleu_full", "rouge_full", "chrf_full")
MEASURED = ("output", "n_tokens", *SCORES, "kl")
COLUMNS = (*LABELS, "mode", "implementation", "depth", *MEASURED)


def truncation_sweep(
    vlm: VLM,
    task: Task | Sequence[Sample],
    *,
    depths: str | Sequence[int] = "all",
    mode: str = "remove",
    implementation: str = "masked",
    max_new_tokens: int | None = None,
    max_rows: int | None = None,
    with_token_ids: bool = False,
    seed: int = 0,
    others: Sequence[Sample] | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Answer every sample with image tokens seen by the first d layers only, for every depth d.

    One plain prefill serves all depths: below its cut a truncated pass is the plain one, and above
    it only the tokens after the image run again, all depths side by side.

    Args:
        vlm: The model.
        task: A task, or samples, each with an image.
        depths: ``"all"`` or numbers in 0..L; d = L is the full model, d = 0 never sees the image.
        mode: ``"remove"`` (rows gone, positions kept), ``"renumber"`` (rows gone, positions closed
            up) or ``"freeze"``: with h the state of an image token going into layer d, every layer
            from d on makes its keys and values of norm(h) by its own norm and projections, and
            what it would add to h is left out: later tokens read the image, it is not processed.
            Controls of that, with other states in the place of h: ``"freeze other image"`` (those
            of another sample's picture, at the same size, at the same depth) and ``"freeze noise"``
            (Gaussian, with the mean and the covariance of the image tokens of NOISE_IMAGES samples
            at that depth; of the own tokens alone, they would tell what is in the picture).
        implementation: ``"masked"`` for all depths at once, or ``"physical"``: rows really dropped,
            one sample and depth at a time, equal in outcome, for measuring time and memory.
        max_new_tokens: Budget of an answer; None for the task's; 0 for divergence only.
        max_rows: Samples times depths at once; None to choose by the memory that is free. Halved
            when memory runs out.
        with_token_ids: Add the columns ``token_ids``, the outputs as lists of tokens, and ``end``,
            the token that ended each; None where the budget did.
        seed: Of the noise and of which other image.
        others: Samples among which each finds its other image, and whose image tokens give the
            noise its moments; None for the samples themselves.
        progress: Called with (done, total, label).

    Returns:
        One row per sample and depth: ``sample, image, task, kind, style, mode, implementation,
        depth, output, n_tokens, correct`` (the task's own score, 0..1), ``same`` (as the full
        model's output), ``bleu, rouge, chrf`` (0..1, against the reference), ``bleu_full,
        rouge_full, chrf_full`` (against the full model's output) and ``kl``: KL(full || truncated)
        of the first answer token in nats.

    Raises:
        ValueError: Unknown mode or implementation, depths out of range, a sample without an image,
            or a model whose layers take no mask.
    """
    if implementation not in ("masked", "physical"):
        known = "use 'masked' or 'physical'"
        raise ValueError(f"implementation {implementation!r} is unknown: {known}")
    if implementation == "physical" and mode != "remove":
        raise ValueError(f"physical truncation removes rows: mode {mode!r} is for 'masked' only")
    if mode not in (known := (*MODES, *FROZEN_OTHER)):
        raise ValueError(f"mode {mode!r} is unknown: use {', '.join(known)}")
    asked = check_depths(vlm, depths, "freeze" if mode in FROZEN_OTHER else mode)
    run = sorted({*asked, vlm.n_layers})
    samples, budget = samples_and_budget(vlm, task, max_new_tokens)
    if not samples:
        return pd.DataFrame(columns=list(COLUMNS))
    max_rows = max_rows or choose_max_rows(vlm, samples[0], len(run), budget)
    pool = list(samples if others is None else others)
    strange = other_images(samples, pool, seed) if mode == "freeze other image" else {}
    bank = _bank(vlm, pool, seed) if mode == "freeze noise" else []

    def measure(block: list[Sample], rows: int) -> list[dict[str, Any]]:
        if implementation == "physical":
            return _physical(vlm, block, run, budget)
        return _masked(vlm, block, run, mode, budget, rows, strange, bank, seed)

    found = pd.DataFrame(in_blocks(samples, len(run), max_rows, measure, progress, "truncation"))
    table = scored(found, samples, vlm.n_layers, budget > 0)
    table = table.assign(mode=mode, implementation=implementation)
    columns = [*COLUMNS, *(["token_ids", "end"] if with_token_ids else [])]
    return table.loc[table["depth"].isin(asked), columns].reset_index(drop=True)


def kl_divergence(full: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(full || other) in nats of the distributions that logits (..., V) stand for, (...)."""
    p, q = full.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def _masked(
    vlm: VLM,
    samples: list[Sample],
    depths: list[int],
    mode: str,
    budget: int,
    max_rows: int,
    strange: Mapping[str, Sample],
    bank: Sequence[torch.Tensor],
    seed: int,
) -> list[dict[str, Any]]:
    """All depths of a block of samples."""
    enc = vlm.encode(samples)
    base = "freeze" if mode in FROZEN_OTHER else mode
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, base))
    frozen = None
    if mode == "freeze other image":
        fake = vlm.encode([strange[sample.id] for sample in samples])
        other = prefill(vlm, fake, fake.is_image)
        frozen = lambda d: other.state(d, Index.of(fake.is_image))  # noqa: E731
    elif mode == "freeze noise":
        frozen = _noise(pre, bank, [sample.id for sample in samples], seed)
    found: list[list[dict[str, Any]]] = [[] for _ in samples]
    for part in chunks(depths, max_rows // len(samples)):
        rows = answered(pre, truncation(pre, part, base, frozen), budget)
        found = [old + new for old, new in zip(found, rows, strict=True)]
    return [row for rows in found for row in rows]


def answered(pre: Prefill, branches: Branches, budget: int) -> list[list[dict[str, Any]]]:
    """By sample, the answer and the divergence of each branch, not scored yet."""
    stop = stop_ids(pre.vlm)
    done = rerun(pre, branches, keep_cache=budget > 1)
    logits = next_logits(pre, done)
    kl = kl_divergence(pre.logits[:, None], logits).tolist()
    none = [[[]] * len(branches.starts)] * len(kl)
    tokens = greedy(pre, done, logits, budget, stop) if budget else none
    out = []
    for sample, ids, values in zip(pre.enc.samples, tokens, kl, strict=True):
        texts = decode_answers(pre.vlm, ids) if budget else [None] * len(ids)
        parts = zip(branches.starts, texts, ids, values, strict=True)
        out.append([row_of(sample, d, text, *without_end(i, stop), v) for d, text, i, v in parts])
    return out


def _bank(vlm: VLM, pool: Sequence[Sample], seed: int) -> list[torch.Tensor]:
    """States of some image tokens of some samples going into each layer, L tensors (N, D)."""
    rng = np.random.default_rng(seed)
    first = list({sample.image_id: sample for sample in pool}.values())
    rows = []
    for i in rng.permutation(len(first))[:NOISE_IMAGES]:
        enc = vlm.encode([first[i]])
        pre = prefill(vlm, enc, enc.is_image)
        some = rng.permutation(int(enc.is_image.sum()))[:NOISE_TOKENS]
        rows.append([state[0, some.tolist()].float() for state in pre.states[:-1]])
    return [torch.cat(layer) for layer in zip(*rows, strict=True)]


def _noise(
    pre: Prefill, bank: Sequence[torch.Tensor], names: Sequence[str], seed: int
) -> Callable[[int], torch.Tensor]:
    """Depth -> Gaussian states (B, M, D) with the moments of ``bank`` there.

    With N centred states X (N, D) and z ~ N(0, I) a row z X / sqrt(N) has their covariance X'X / N.
    """
    images, n = Index.of(pre.enc.is_image), len(bank[0])
    mixes = torch.zeros(len(names), len(images), n, device=pre.vlm.device)
    for b, name in enumerate(names):
        rows = int(images.valid[b].sum())
        draw = np.random.default_rng([seed, *name.encode()]).standard_normal((rows, n), np.float32)
        mixes[b, len(images) - rows :] = torch.from_numpy(draw).to(mixes) / n**0.5

    def states(depth: int) -> torch.Tensor:
        if depth == len(bank):  # never read
            return pre.state(depth, images)
        mean = bank[depth].mean(0)
        return (mean + mixes @ (bank[depth] - mean)).to(pre.states[depth].dtype)

    return states


def _physical(
    vlm: VLM, samples: list[Sample], depths: list[int], budget: int
) -> list[dict[str, Any]]:
    """One sample and one depth at a time, rows really dropped."""
    out, stop = [], stop_ids(vlm)
    for sample in samples:
        enc = vlm.encode([sample])
        image_spans(enc)
        runs = {d: physical.greedy(vlm, enc, d, max(budget, 1), stop)[:2] for d in depths}
        full = runs[vlm.n_layers][1]
        for depth, (ids, logits) in runs.items():
            text = decode_answers(vlm, [ids])[0] if budget else None
            value = float(kl_divergence(full, logits))
            said = without_end(ids if budget else [], stop)
            out.append(row_of(sample, depth, text, *said, value))
    return out


def row_of(
    sample: Sample, depth: int, text: str | None, ids: list[int], end: int | None, kl: float
) -> dict[str, Any]:
    """One answer, not scored yet."""
    said = {"output": text, "n_tokens": len(ids), "token_ids": ids, "end": end, "kl": kl}
    return {**sample.labels(), "depth": depth, **said}


def scored(
    found: pd.DataFrame, samples: Sequence[Sample], full_depth: int, generated: bool
) -> pd.DataFrame:
    """Add the scores of the outputs, against the reference and against those at ``full_depth``."""
    if not generated:
        return found.assign(**dict.fromkeys(SCORES, float("nan")))
    by_id = {sample.id: sample for sample in samples}
    full = found[found["depth"] == full_depth].set_index("sample")["output"]
    own, base = found["output"].tolist(), found["sample"].map(full).tolist()
    references = [by_id[name].accepted for name in found["sample"]]
    against = text_scores(own, references).to_dict("list")
    against_full = text_scores(own, base).add_suffix("_full").to_dict("list")
    correct = [score(by_id[s], text) for s, text in zip(found["sample"], own, strict=True)]
    same = [a == b for a, b in zip(own, base, strict=True)]
    return found.assign(correct=correct, same=same, **against, **against_full)
