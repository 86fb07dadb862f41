"""Chains of reasoning at every depth: free-running, and token by token along the full model's own.

Free-running chains cascade: after the first other word everything may differ. So each depth also
reads the full model's output, token by token (teacher forcing): how often is the next token another
one, in the chain and in the answer? The second tells whether the answer changes *directly*, with
the chain given, or only *through* the chain.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import LABELS, Sample
from visdepth_utils.data.tasks import Task, other_images, samples_and_budget
from visdepth_utils.measure.batching import chunks
from visdepth_utils.measure.patching.branches import check_depths, kept_for_truncation
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.scores import answer_span, score
from visdepth_utils.measure.teacher_forcing import plain_tail, read_along, token_kl
from visdepth_utils.measure.truncation import kl_divergence, truncation_sweep
from visdepth_utils.models.vlm import VLM

CONTROLS = ("run again", "one pixel", "another picture")
OTHER_BATCH = 12
"""Controls run in batches of this size, and of all controls mixed, so that "run again" is not the
very same computation."""

COLUMNS = (
    *LABELS,
    "mode",
    "depth",
    "control",
    "output",
    "reference",
    "correct",
    "n_chain",
    "n_answer",
    "kl_chain",
    "kl_answer",
    "changed_chain",
    "changed_answer",
    "answer_kept",
)


def reasoning_sweep(
    vlm: VLM,
    task: Task | Sequence[Sample],
    *,
    depths: str | Sequence[int] = "all",
    mode: str = "remove",
    controls: Sequence[str] = CONTROLS,
    others: Sequence[Sample] | None = None,
    max_new_tokens: int | None = None,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Greedy chains and answers for every depth, and what changes token by token.

    Distances between the outputs: ``chains.compare``. Controls are the full model once more: ``"run
    again"`` (batches of another size), ``"one pixel"`` (picture shifted to the right by one) and
    ``"another picture"``, found among ``others``, or the samples. Depth L is always measured; other
    arguments as in ``truncation_sweep``.

    Returns:
        One row per sample and depth, and per control at depth L: ``sample, image, task, kind,
        style, mode, depth, control`` (empty for none), ``output, reference, correct`` (0..1), and
        under teacher forcing along the full model's own output, words and numbers only: ``n_chain,
        n_answer`` (tokens), ``kl_chain, kl_answer`` (mean KL(full || this) in nats),
        ``changed_chain, changed_answer`` (share of tokens whose most probable one is another) and
        ``answer_kept`` (no answer token changes: what the answer is, given the full chain). NaN
        where the full model gave no output, or named no final answer.

    Raises:
        ValueError: Unknown control; else as ``truncation_sweep``.
    """
    if bad := [name for name in controls if name not in CONTROLS]:
        raise ValueError(f"unknown control {bad[0]!r}: use some of {', '.join(CONTROLS)}")
    samples, budget = samples_and_budget(vlm, task, max_new_tokens)
    run = sorted({*check_depths(vlm, depths, mode), vlm.n_layers})
    options = {"depths": run, "mode": mode, "max_rows": max_rows, "progress": progress}
    found = truncation_sweep(
        vlm, samples, max_new_tokens=budget, with_token_ids=True, **options
    ).assign(control="")
    if not samples:
        return pd.DataFrame(columns=list(COLUMNS))
    full = found[found["depth"] == vlm.n_layers].set_index("sample")["token_ids"]
    spoke = [sample for sample in samples if len(full[sample.id])]
    said = [full[sample.id] for sample in spoke]
    changed = {name: _changed(samples, name, others) for name in controls}
    batch = min(OTHER_BATCH, max_rows or OTHER_BATCH)
    found = pd.concat([found, _answers(vlm, samples, changed, mode, budget, batch)])
    tokens = [token_kl(vlm, spoke, token_ids=said, **options).assign(control="")] if spoke else []
    if spoke:
        tokens.append(_along(vlm, spoke, changed, said, mode, batch))
    forced = _by_part(vlm, pd.concat(tokens, ignore_index=True)) if tokens else None
    found = found.assign(reference=found["sample"].map({s.id: s.reference for s in samples}))
    if forced is not None:
        found = found.merge(forced, on=["sample", "depth", "control"], how="left")
    return found.reindex(columns=list(COLUMNS)).reset_index(drop=True)


def one_pixel(sample: Sample) -> Sample:
    """The sample with its pictures shifted to the right by one pixel, the left edge repeated."""
    shifted = []
    for picture in sample.images:
        pixels = np.asarray(picture)
        moved = np.concatenate([pixels[:, :1], pixels[:, :-1]], axis=1)
        shifted.append(Image.fromarray(moved))
    return replace(sample, images=tuple(shifted))


def token_parts(tokenizer: Any, ids: Sequence[int], opened: str = "") -> list[str]:
    """``"chain"``, ``"answer"`` or ``""`` for each token of an output.

    ``opened`` is the mark of thinking that the prompt leaves open. The answer begins after what
    names it (``scores.answer_span``; all is answer where nothing does). ``""`` is for tokens that
    add no letter or digit (marks, end of text) and for the words "answer is" themselves.
    """
    prefixes = [
        opened + tokenizer.decode(ids[:k], skip_special_tokens=True) for k in range(len(ids) + 1)
    ]
    start, end, _ = answer_span(prefixes[-1])
    out = []
    for before, after in zip(prefixes, prefixes[1:], strict=False):
        new = after[len(before) :] if after.startswith(before) else after
        if not any(letter.isalnum() for letter in new):
            out.append("")
        elif len(after.rstrip()) <= start:
            out.append("chain")
        else:
            out.append("answer" if len(after.rstrip()) > end else "")
    return out


def _changed(
    samples: Sequence[Sample], control: str, others: Sequence[Sample] | None
) -> dict[str, Sample]:
    """Sample id -> what a control shows the model instead."""
    if control == "another picture":
        return other_images(samples, others)
    return {s.id: one_pixel(s) if control == "one pixel" else s for s in samples}


def _answers(
    vlm: VLM,
    samples: Sequence[Sample],
    changed: dict[str, dict[str, Sample]],
    mode: str,
    budget: int,
    batch: int,
) -> pd.DataFrame:
    """Greedy outputs of the full model on what the controls show, scored by the own answer."""
    asked = [(name, sample) for name in changed for sample in samples]
    outputs = vlm.generate([changed[name][s.id] for name, s in asked], budget, batch)
    where = {"mode": mode, "depth": vlm.n_layers}
    rows = [
        {**s.labels(), **where, "control": name, "output": text, "correct": score(s, text)}
        for (name, s), text in zip(asked, outputs, strict=True)
    ]
    return pd.DataFrame(rows)


def _along(
    vlm: VLM,
    samples: Sequence[Sample],
    changed: dict[str, dict[str, Sample]],
    said: Sequence[Sequence[int]],
    mode: str,
    batch: int,
) -> pd.DataFrame:
    """Token by token along the full model's outputs, the full model on what the controls show."""
    rows = []
    # The plain side runs one sample at a time: "run again" is then another batch.
    plain = {
        sample.id: _tails(vlm, [sample], [ids])[0]
        for sample, ids in zip(samples, said, strict=True)
    }
    asked = [(name, s, ids) for name in changed for s, ids in zip(samples, said, strict=True)]
    for part in chunks(asked, batch):
        tails = _tails(vlm, [changed[name][s.id] for name, s, _ in part], [ids for *_, ids in part])
        for (name, sample, ids), other in zip(part, tails, strict=True):
            kl = kl_divergence(plain[sample.id], other).tolist()
            same = (plain[sample.id].argmax(-1) == other.argmax(-1)).tolist()
            rows += [
                (sample.id, mode, vlm.n_layers, name, i, *token)
                for i, token in enumerate(zip(ids, kl, same, strict=True))
            ]
    columns = ["sample", "mode", "depth", "control", "token", "token_id", "kl", "same_top1"]
    return pd.DataFrame(rows, columns=columns)


def _tails(vlm: VLM, samples: Sequence[Sample], ids: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The full model's logits (n, V) for each sample's n answer tokens."""
    enc, lengths = read_along(vlm, samples, ids)
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, "remove"))
    return [plain_tail(pre, b, n) for b, n in enumerate(lengths)]


def _by_part(vlm: VLM, tokens: pd.DataFrame) -> pd.DataFrame:
    """Means over the tokens of chain and answer, one row per sample, depth and control."""
    whole = tokens[(tokens["control"] == "") & (tokens["depth"] == vlm.n_layers)]
    parts = {
        name: token_parts(vlm.tokenizer, rows["token_id"].tolist(), vlm.thinking[0])
        for name, rows in whole.sort_values("token").groupby("sample", sort=False)
    }
    ends = {name: "chain" in part for name, part in parts.items()}
    tokens = tokens.assign(
        part=[parts[s][t] for s, t in zip(tokens["sample"], tokens["token"], strict=True)],
        changed=1.0 - tokens["same_top1"].astype(float),
    )
    keys = ["sample", "depth", "control"]
    out = tokens[keys].drop_duplicates().set_index(keys)
    for part in ("chain", "answer"):
        own = tokens[(tokens["part"] == part) & tokens["sample"].map(ends)].groupby(keys)
        out[f"n_{part}"] = own.size()
        out[f"kl_{part}"] = own["kl"].mean()
        out[f"changed_{part}"] = own["changed"].mean()
    kept = (out["changed_answer"] == 0).astype(float)
    out["answer_kept"] = kept.where(out["changed_answer"].notna())
    return out.reset_index()
