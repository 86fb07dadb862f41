"""Image tokens hidden in some layers, from some readers, or all but a share of them.

One mechanism: in layers ``depth`` to ``to`` - 1 the chosen readers do not read the chosen image
tokens, which themselves run as ever. Removal at a depth is one case (all tokens, from all readers,
to the last layer). This tells what it does to answers; ``physical`` tells what it saves.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import LABELS, Sample
from visdepth_utils.data.tasks import Task, samples_and_budget
from visdepth_utils.measure.batching import choose_max_rows, chunks, in_blocks
from visdepth_utils.measure.patching.branches import READERS, hiding, image_spans, reached
from visdepth_utils.measure.patching.prefill import Index, Prefill, prefill
from visdepth_utils.measure.truncation import MEASURED, answered, scored
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.vlm import VLM

RULES = ("random", "stride", "norm", "attention")
COLUMNS = (*LABELS, "intervention", "depth", "to", "readers", "share", "rule", "draw", *MEASURED)


@dataclass(frozen=True)
class Hide:
    """One intervention.

    Attributes:
        depth: First layer in which image tokens are hidden, in 0..L.
        to: Layer from which they are read again; None for never.
        readers: ``"all"``, ``"question"`` (the prompt's tokens but the last) or ``"answer"`` (the
            prompt's last token and those generated, where the answer is read off).
        share: Of a sample's image tokens, the share that stays visible, in 0..1; from those that
            stay, the others are hidden too (if the readers are all).
        rule: Which stay: ``"random"``, ``"stride"`` (evenly spaced), ``"norm"`` (largest norm of
            the state going into ``depth``) or ``"attention"`` (those that the prompt's last token
            attends to most, mean over heads, in layer ``depth`` - 1; FastV, arXiv 2403.06764).
        draw: Of the random rule, which draw.
    """

    depth: int
    to: int | None = None
    readers: str = "all"
    share: float = 0.0
    rule: str = "random"
    draw: int = 0

    @property
    def intervention(self) -> str:
        """``remove``, ``window``, ``edges`` or ``partial``: what tells it from plain removal."""
        if self.share:
            return "partial"
        return "edges" if self.readers != "all" else "remove" if self.to is None else "window"

    def check(self, n_layers: int) -> None:
        """Raise ValueError, naming the field, if it cannot be done in a model of so many layers."""
        to = n_layers if self.to is None else self.to
        if not 0 <= self.depth <= to <= n_layers:
            raise ValueError(f"{self}: give 0 <= depth <= to <= {n_layers}, the number of layers")
        if self.readers not in READERS or self.rule not in RULES:
            raise ValueError(f"{self}: readers are {READERS}, rules are {RULES}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"{self}: share is in 0..1")
        if self.share and self.rule == "attention" and not self.depth:
            raise ValueError(f"{self}: attention is that of the layer before: depth is at least 1")


def windows(n_layers: int, width: int | None = None) -> list[Hide]:
    """All windows of so many layers, or of every width."""
    widths = range(1, n_layers + 1) if width is None else [width]
    return [Hide(a, a + w) for w in widths for a in range(n_layers - w + 1)]


def hiding_sweep(
    vlm: VLM,
    task: Task | Sequence[Sample],
    variants: Sequence[Hide],
    *,
    max_new_tokens: int | None = None,
    max_rows: int | None = None,
    with_token_ids: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Answer every sample under each intervention, and without any.

    One plain prefill serves them all. Only the tokens after the image run again, and the image only
    where a share of it stays.

    Args:
        vlm: The model.
        task: A task, or samples, each with an image.
        variants: The interventions.
        max_new_tokens: Budget of an answer; None for the task's; 0 for divergence only.
        max_rows: Samples times interventions at once; None to choose by the memory that is free.
        with_token_ids: Add the columns ``token_ids`` and ``end``, as in ``truncation_sweep``.
        progress: Called with (done, total, label).

    Returns:
        One row per sample and intervention: ``sample, image, task, kind, style, intervention,
        depth, to, readers, share, rule, draw`` and what ``truncation_sweep`` measures. Rows of the
        untouched model have depth L and the intervention ``"none"``.

    Raises:
        ValueError: An intervention that the model cannot be given, or a sample without an image.
    """
    last = vlm.n_layers
    for variant in variants:
        variant.check(last)
    run = sorted({*variants, Hide(last)}, key=lambda v: (v.share > 0, v.depth))
    samples, budget = samples_and_budget(vlm, task, max_new_tokens)
    if not samples:
        return pd.DataFrame(columns=list(COLUMNS))
    shares = any(v.share for v in variants)
    max_rows = max_rows or choose_max_rows(vlm, samples[0], len(run), budget, images_run=shares)

    def measure(block: list[Sample], rows: int) -> list[dict[str, Any]]:
        return _measured(vlm, block, run, budget, rows)

    raw = pd.DataFrame(in_blocks(samples, len(run), max_rows, measure, progress, "hiding"))
    table = scored(raw, samples, last, budget > 0)
    columns = [*COLUMNS, *(["token_ids", "end"] if with_token_ids else [])]
    return table[columns]


def _measured(
    vlm: VLM, samples: list[Sample], variants: list[Hide], budget: int, max_rows: int
) -> list[dict[str, Any]]:
    """All interventions on a block of samples."""
    enc, last = vlm.encode(samples), vlm.n_layers
    image_spans(enc)
    pre = prefill(vlm, enc, reached(vlm, enc, enc.is_image))
    ranked = any(v.share and v.rule == "attention" for v in variants)
    attention = attention_of_last(vlm, enc) if ranked else None
    out: list[list[dict[str, Any]]] = [[] for _ in samples]
    whole = [v for v in variants if not v.share]
    parts = [chunks(some, max_rows // len(samples)) for some in (whole, variants[len(whole) :])]
    for part in (part for some in parts for part in some):
        keys = torch.stack([enc.is_image & ~visible(pre, v, attention) for v in part], 1)
        rows = hiding(
            pre,
            [v.depth for v in part],
            [last if v.to is None else v.to for v in part],
            keys,
            [v.readers for v in part],
        )
        for b, found in enumerate(answered(pre, rows, budget)):
            for variant, row in zip(part, found, strict=True):
                name = "none" if variant == Hide(last) else variant.intervention
                to = last if variant.to is None else variant.to
                out[b].append(row | asdict(variant) | {"to": to, "intervention": name})
    return [row for rows in out for row in rows]


def visible(pre: Prefill, variant: Hide, attention: torch.Tensor | None) -> torch.Tensor:
    """Image tokens that an intervention leaves visible, bool (B, S).

    Args:
        pre: The plain pass; must have kept the image tokens' states.
        variant: The intervention.
        attention: ``attention_of_last``, for that rule.
    """
    image = pre.enc.is_image
    if not variant.share:
        return torch.zeros_like(image)
    if variant.rule == "norm":
        index = Index.of(image)
        norms = pre.state(variant.depth, index).float().norm(dim=-1)
        marks = torch.zeros(image.shape, device=image.device).scatter(1, index.at, norms)
    elif variant.rule == "attention":
        marks = attention[variant.depth - 1]
    out = torch.zeros_like(image)
    for b, places in enumerate(row.nonzero()[:, 0] for row in image):
        n, m = len(places), round(variant.share * len(places))
        if variant.rule == "stride":
            chosen = torch.tensor([int((i + 0.5) * n / m) for i in range(m)], dtype=torch.long)
        elif variant.rule == "random":
            name = pre.enc.samples[b].id.encode() if pre.enc.samples else [b]
            rng = np.random.default_rng([variant.draw, *name])
            chosen = torch.from_numpy(rng.permutation(n)[:m].copy())
        else:
            chosen = marks[b, places].argsort(descending=True, stable=True)[:m]
        out[b, places[chosen.to(places.device)]] = True
    return out


@torch.no_grad()
def attention_of_last(vlm: VLM, enc: Encoded) -> torch.Tensor:
    """How the prompt's last token spreads its attention in each layer, mean over heads.

    The decoder runs once with eager attention; one layer's weights are held at a time.

    Args:
        vlm: The model.
        enc: A batch.

    Returns:
        (L, B, S), each row sums to 1.
    """
    config, rows = vlm.model.get_decoder().config, []
    kind = config._attn_implementation

    def after(_module: torch.nn.Module, _args: tuple, output: tuple) -> None:
        rows.append(output[1][:, :, -1].float().mean(1).to(vlm.device))

    handles = [layer.self_attn.register_forward_hook(after) for layer in vlm.layers]
    config._attn_implementation = "eager"
    try:
        vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1)
    finally:
        config._attn_implementation = kind
        for handle in handles:
            handle.remove()
    return torch.stack(rows)
