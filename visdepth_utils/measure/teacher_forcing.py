"""Teacher forcing: what each depth makes of every token of a given answer.

Free-running answers differ more the longer they are, because one changed token changes all that
follow. Here the models read the same text, so each token stands for itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from typing import NamedTuple

import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import Sample
from visdepth_utils.data.tasks import Task
from visdepth_utils.measure.batching import choose_max_rows, chunks, in_blocks
from visdepth_utils.measure.patching.branches import check_depths, kept_for_truncation, truncation
from visdepth_utils.measure.patching.prefill import Prefill, prefill
from visdepth_utils.measure.patching.rerun import rerun
from visdepth_utils.measure.truncation import kl_divergence
from visdepth_utils.models.encoding import Encoded, append_tokens
from visdepth_utils.models.parts import head
from visdepth_utils.models.vlm import VLM

TOKEN_COLUMNS = (
    "sample",
    "image",
    "task",
    "mode",
    "depth",
    "token",
    "token_id",
    "kl",
    "same_top1",
    "n_tokens",
)


class _Asked(NamedTuple):
    """A sample with the answer to be read; kept together, as a sample may be asked twice."""

    id: str  # of the sample, for messages
    sample: Sample
    answer: Sequence[int] | None


def token_kl(
    vlm: VLM,
    task: Task | Sequence[Sample],
    *,
    depths: str | Sequence[int] = "all",
    mode: str = "remove",
    texts: Sequence[str] | None = None,
    token_ids: Sequence[Sequence[int]] | None = None,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Divergence from the full model at every token of a given answer (teacher forcing).

    The answers to read, one per sample, are ``texts``, or ``token_ids``, e.g. as a model generated
    them, or the references. Other arguments as in ``truncation_sweep``.

    Returns:
        One row per sample, depth and answer token: ``sample, image, task, mode, depth, token``
        (from 0), ``token_id``, ``kl`` (KL(full || truncated) in nats), ``same_top1``, ``n_tokens``.

    Raises:
        ValueError: As ``truncation_sweep``; or a sample whose answer has no token.
    """
    run = check_depths(vlm, depths, mode)
    samples = list(getattr(task, "samples", task))
    if texts is not None:
        if len(texts) != len(samples):
            raise ValueError(f"{len(texts)} texts for {len(samples)} samples: give one per sample")
        samples = [replace(s, reference=text) for s, text in zip(samples, texts, strict=True)]
    if token_ids is not None and (texts is not None or len(token_ids) != len(samples)):
        raise ValueError(
            f"{len(token_ids)} token_ids for {len(samples)} samples: give one per sample, no texts"
        )
    pairs = zip(samples, token_ids or repeat(None), strict=False)
    asked = [_Asked(sample.id, sample, answer) for sample, answer in pairs]
    max_rows = max_rows or (choose_max_rows(vlm, samples[0], len(run), 0) if samples else 1)
    rows = in_blocks(
        asked,
        len(run),
        max_rows,
        lambda block, limit: _forced(vlm, block, run, mode, limit),
        progress,
        "token divergence",
    )
    return pd.DataFrame(rows, columns=list(TOKEN_COLUMNS))


def read_along(
    vlm: VLM, samples: Sequence[Sample], answers: Sequence[Sequence[int] | None]
) -> tuple[Encoded, list[int]]:
    """Encode samples with answers to be read (None: the reference), and count each answer's tokens.

    ValueError names a sample whose answer adds no token.
    """
    if all(ids is None for ids in answers):
        enc = vlm.encode(samples, with_reference=True)
        lengths = answer_lengths(vlm, samples, enc)
        if vlm.family.causal_prefix:
            return enc, lengths
        answers = [enc.inputs["input_ids"][b, -n:].tolist() for b, n in enumerate(lengths)]
    return append_tokens(vlm, vlm.encode(samples), answers), [len(ids) for ids in answers]


def _forced(
    vlm: VLM, asked: Sequence[_Asked], depths: list[int], mode: str, max_rows: int
) -> list[tuple]:
    """Token divergences of a block of samples."""
    samples = [each.sample for each in asked]
    enc, lengths = read_along(vlm, samples, [each.answer for each in asked])
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, mode))
    found: list[list[tuple]] = [[] for _ in samples]
    plain = [plain_tail(pre, b, n) for b, n in enumerate(lengths)]
    for part in chunks(depths, max_rows // len(samples)):
        rows = truncation(pre, part, mode)
        done = rerun(pre, rows, keep_cache=False, tail=max(lengths) + 1)
        for b, sample in enumerate(samples):
            for row, depth in enumerate(part):
                # The state of token i says what token i + 1 will be.
                logits = head(vlm, done.states[b, row, -lengths[b] - 1 : -1])
                kl = kl_divergence(plain[b], logits).tolist()
                same = (plain[b].argmax(-1) == logits.argmax(-1)).tolist()
                first = (sample.id, sample.image_id, sample.task, mode, depth)
                ids = enc.inputs["input_ids"][b, -lengths[b] :].tolist()
                found[b] += [
                    (*first, i, *token, lengths[b])
                    for i, token in enumerate(zip(ids, kl, same, strict=True))
                ]
    return [row for rows in found for row in rows]


def plain_tail(pre: Prefill, b: int, n: int) -> torch.Tensor:
    """The full model's logits (n, V) for the last n tokens of one sample."""
    return head(pre.vlm, pre.states[-1][b, -n - 1 : -1])


def answer_lengths(vlm: VLM, samples: Sequence[Sample], enc: Encoded) -> list[int]:
    """How many tokens of each row are the reference; ValueError names a sample that adds none."""
    bare = vlm.encode(samples)
    out = []
    for b, sample in enumerate(samples):
        whole, start = (
            e.inputs["input_ids"][b][e.inputs["attention_mask"][b].bool()] for e in (enc, bare)
        )
        n = min(len(whole), len(start))
        differ = (whole[:n] != start[:n]).nonzero()
        first = int(differ[0]) if len(differ) else n
        if len(whole) <= first:
            raise ValueError(f"sample {sample.id!r}: its answer {sample.reference!r} has no token")
        out.append(len(whole) - first)
    return out
