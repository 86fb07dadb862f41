"""Truncation at every depth in one pass: answers, their scores, the first token's divergence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from visdepth_utils.data.samples import LABELS
from visdepth_utils.data.tasks import samples_and_budget
from visdepth_utils.measure import physical
from visdepth_utils.measure.batching import choose_max_rows, chunks, in_blocks
from visdepth_utils.measure.patching.branches import (
    check_depths,
    image_spans,
    kept_for_truncation,
    truncation,
)
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun
from visdepth_utils.measure.scores import score
from visdepth_utils.measure.similarity import text_scores
from visdepth_utils.models.generation import decode_answers, stop_ids, without_end

if TYPE_CHECKING:
    from visdepth_utils.data.samples import Sample
    from visdepth_utils.data.tasks import Task
    from visdepth_utils.models.vlm import VLM

Progress = Callable[[int, int, str], None]

__all__ = ["kl_divergence", "truncation_sweep"]

IMPLEMENTATIONS = ("masked", "physical")

COLUMNS = (
    *LABELS,
    "mode",
    "implementation",
    "depth",
    "output",
    "n_tokens",
    "correct",
    "same",
    "bleu",
    "rouge",
    "chrf",
    "bleu_full",
    "rouge_full",
    "chrf_full",
    "kl",
)


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
            up) or ``"freeze"`` (rows keep their state of depth d and stay readable).
        implementation: ``"masked"`` for all depths at once, or ``"physical"``: rows really dropped,
            one sample and depth at a time, equal in outcome, for measuring time and memory.
        max_new_tokens: Budget of an answer; None for the task's; 0 for divergence only.
        max_rows: Samples times depths at once; None to choose by the memory that is free. Halved
            when memory runs out.
        with_token_ids: Add the columns ``token_ids``, the outputs as lists of tokens, and ``end``,
            the token that ended each; None where the budget did.
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
    if implementation not in IMPLEMENTATIONS:
        known = " or ".join(map(repr, IMPLEMENTATIONS))
        raise ValueError(f"implementation {implementation!r} is unknown: use {known}")
    if implementation == "physical" and mode != "remove":
        raise ValueError(f"physical truncation removes rows: mode {mode!r} is for 'masked' only")
    asked = check_depths(vlm, depths, mode)
    run = sorted({*asked, vlm.n_layers})
    samples, budget = samples_and_budget(vlm, task, max_new_tokens)
    if not samples:
        return pd.DataFrame(columns=list(COLUMNS))
    max_rows = max_rows or choose_max_rows(vlm, samples[0], len(run), budget)

    def measure(block: list[Sample], rows: int) -> list[dict[str, Any]]:
        if implementation == "physical":
            return _physical(vlm, block, run, budget)
        return _masked(vlm, block, run, mode, budget, rows)

    found = pd.DataFrame(in_blocks(samples, len(run), max_rows, measure, progress, "truncation"))
    table = _scored(found, samples, vlm.n_layers, budget > 0)
    table = table.assign(mode=mode, implementation=implementation)
    columns = [*COLUMNS, *(["token_ids", "end"] if with_token_ids else [])]
    return table.loc[table["depth"].isin(asked), columns].reset_index(drop=True)


def kl_divergence(full: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(full || other) in nats of the distributions that logits (..., V) stand for, (...)."""
    p, q = full.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def _masked(
    vlm: VLM, samples: list[Sample], depths: list[int], mode: str, budget: int, max_rows: int
) -> list[dict[str, Any]]:
    """All depths of a block of samples."""
    enc = vlm.encode(samples)
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, mode))
    stop = stop_ids(vlm)
    found: list[list[dict[str, Any]]] = [[] for _ in samples]
    for part in chunks(depths, max_rows // len(samples)):
        done = rerun(pre, truncation(pre, part, mode), keep_cache=budget > 1)
        logits = next_logits(pre, done)
        kl = kl_divergence(pre.logits[:, None], logits).tolist()
        said = greedy(pre, done, logits, budget, stop) if budget else None
        for b, sample in enumerate(samples):
            texts = decode_answers(vlm, said[b]) if said else [None] * len(part)
            tokens = said[b] if said else [[]] * len(part)
            for depth, text, ids, value in zip(part, texts, tokens, kl[b], strict=True):
                found[b].append(_row(sample, depth, text, *without_end(ids, stop), value))
    return [row for rows in found for row in rows]


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
            out.append(_row(sample, depth, text, *said, value))
    return out


def _row(
    sample: Sample, depth: int, text: str | None, ids: list[int], end: int | None, kl: float
) -> dict[str, Any]:
    return {
        **sample.labels(),
        "depth": depth,
        "output": text,
        "n_tokens": len(ids),
        "token_ids": ids,
        "end": end,
        "kl": kl,
    }


def _scored(
    found: pd.DataFrame, samples: Sequence[Sample], full_depth: int, generated: bool
) -> pd.DataFrame:
    """Add the scores of the outputs, against the reference and against the full model."""
    if not generated:
        empty = ("correct", "same", "bleu", "rouge", "chrf", "bleu_full", "rouge_full", "chrf_full")
        return found.assign(**dict.fromkeys(empty, float("nan")))
    by_id = {sample.id: sample for sample in samples}
    full = found[found["depth"] == full_depth].set_index("sample")["output"]
    own, base = found["output"].tolist(), found["sample"].map(full).tolist()
    references = [by_id[name].accepted for name in found["sample"]]
    against = text_scores(own, references).to_dict("list")
    against_full = text_scores(own, base).add_suffix("_full").to_dict("list")
    correct = [score(by_id[s], text) for s, text in zip(found["sample"], own, strict=True)]
    same = [a == b for a, b in zip(own, base, strict=True)]
    return found.assign(correct=correct, same=same, **against, **against_full)
