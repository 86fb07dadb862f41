"""Interchangeability: the states of one layer put in at another, for all pairs of layers.

For each pair (source layer a, layer b) the chosen tokens' states going into layer b are replaced by
the same tokens' states going into layer a, and everything from b on is computed again. The source
layers run side by side, and below b nothing is run twice.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import Sample
from visdepth_utils.data.tasks import Task, other_images, samples_and_budget
from visdepth_utils.measure.batching import choose_max_rows, chunks, in_blocks
from visdepth_utils.measure.patching.branches import (
    check_layers,
    moved_tokens,
    replaceable,
    substitution,
)
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import Index, Prefill, prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun
from visdepth_utils.measure.scores import score
from visdepth_utils.measure.similarity import similarity
from visdepth_utils.measure.truncation import kl_divergence
from visdepth_utils.models.generation import decode_answers, stop_ids
from visdepth_utils.models.vlm import VLM

FAR_NOISE = "noise as far as another image"
CONTROLS = ("other image", "noise", FAR_NOISE)
FROM_OTHER = {"other image", FAR_NOISE}
"""Controls that need the states of another image: one row per layer, its own source."""

COLUMNS = (
    "sample",
    "image",
    "task",
    "modality",
    "source_layer",
    "layer",
    "control",
    "rescaled",
    "kl",
    "same_top1",
    "output",
    "same",
    "similarity",
    "correct",
)


@dataclass(frozen=True)
class Spec:
    """One row to be run: what is put in at ``layer``."""

    layer: int
    source_layer: int
    control: str = ""
    rescaled: bool = False


def substitution_grid(
    vlm: VLM,
    task: Task | Sequence[Sample],
    *,
    modality: str = "image",
    layers: Sequence[int] | None = None,
    stride: int = 1,
    controls: Sequence[str] = CONTROLS,
    rescale: Sequence[bool] = (False,),
    max_new_tokens: int | None = None,
    encoder: str = "chrf",
    seed: int = 0,
    others: Sequence[Sample] | None = None,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Replace states of layer b by those of layer a, for all pairs, and see what the model says.

    Text substitution replaces text tokens that come after the image has begun; tokens generated
    afterwards read the plain keys below layer b and the new ones from it on.

    Args:
        vlm: The model.
        task: A task, or samples, each with an image.
        modality: ``"image"`` or ``"text"``: whose states are replaced.
        layers: Source layers and layers, of 0..L-1; None for all that can take part.
        stride: Take every stride-th of them, counted back from the last.
        controls: For image states, of ``"other image"`` (the states going into b when another
            sample's picture, at the same size, is in the prompt; one row per layer, its own
            source), ``"noise"`` (own states plus a random vector as long as the difference
            between the source layer's and the own, token by token) and ``"noise as far as another
            image"`` (the same as long as the difference between the other image's states at b
            and the own; one row per layer).
        rescale: Rows without, with, or both: replaced states scaled to the length of the own ones,
            token by token (the residual stream grows with depth).
        max_new_tokens: Budget of an answer; None for the task's; 0 for divergence only.
        encoder: Measure of ``similarity``.
        seed: Of the noise and of which other image.
        others: Samples among which each finds its other image; None for the samples themselves.
        max_rows: Samples times pairs at once; None to choose by the memory that is free.
        progress: Called with (done, total, label).

    Returns:
        One row per sample and pair: ``sample, image, task, modality, source_layer, layer, control,
        rescaled, kl`` (KL(plain || substituted) of the next token in nats), ``same_top1, output,
        same, similarity`` (0..1, to the plain output), ``correct`` (0..1). Rows at source layer
        = layer without control are the plain model: one layer's are run as a check that putting
        back a layer's own states changes nothing, another layer for each block of samples.

    Raises:
        ValueError: Unknown modality or control, layers out of range or below the last DeepStack
            layer, a sample without image.
    """
    if bad := [name for name in controls if name not in CONTROLS]:
        raise ValueError(f"unknown control {bad[0]!r}: use some of {', '.join(CONTROLS)}")
    samples, budget = samples_and_budget(vlm, task, max_new_tokens)
    if stride < 1:
        raise ValueError(f"stride={stride}: give at least 1")
    first = len(vlm.injection_layers) if modality == "image" else 0
    chosen = range(first, vlm.n_layers) if layers is None else layers
    chosen = check_layers(vlm, chosen, modality)[::-1][::stride][::-1]
    active = [name for name in controls if modality == "image"]
    specs = pairs(chosen, active, rescale)
    if not samples:
        return pd.DataFrame(columns=list(COLUMNS))
    strange = other_images(samples, others, seed) if FROM_OTHER & set(active) else {}
    max_rows = max_rows or choose_max_rows(vlm, samples[0], len(specs), budget, modality == "image")
    order = {sample.id: i for i, sample in enumerate(samples)}
    measure = partial(_block, vlm, strange, specs, modality, budget, seed, order)
    rows = in_blocks(samples, len(specs), max_rows, measure, progress, f"{modality} states")
    table = pd.DataFrame(rows)
    table = _scored(table, samples, encoder) if budget else table
    return table.reindex(columns=list(COLUMNS))


def pairs(layers: Sequence[int], controls: Sequence[str], rescale: Sequence[bool]) -> list[Spec]:
    """All rows for these layers, in order of the layer at which they leave the plain pass."""
    out = []
    for layer in layers:
        out.append(Spec(layer, layer))
        out += [Spec(layer, layer, name) for name in controls if name in FROM_OTHER]
        for source_layer in layers:
            if source_layer == layer:
                continue
            out += [Spec(layer, source_layer, rescaled=scaled) for scaled in rescale]
            if "noise" in controls:
                out.append(Spec(layer, source_layer, "noise"))
    return out


def _block(
    vlm: VLM,
    others: dict[str, Sample],
    specs: list[Spec],
    modality: str,
    budget: int,
    seed: int,
    order: dict[str, int],
    samples: list[Sample],
    max_rows: int,
) -> list[dict[str, Any]]:
    """All pairs for a block of samples."""
    enc = vlm.encode(samples)
    pre = prefill(vlm, enc, moved_tokens(vlm, enc, replaceable(enc, modality)))
    target = Index.of(replaceable(enc, modality))
    strange = None
    if others:
        fake = vlm.encode([others[sample.id] for sample in samples])
        strange = prefill(vlm, fake, fake.is_image)
    noise = _directions(samples, target, vlm, seed)
    found: list[dict[Spec, dict[str, Any]]] = [{} for _ in samples]
    for part in chunks(_run(specs, order[samples[0].id], vlm.n_layers), max_rows // len(samples)):
        states = [_states(pre, target, spec, strange, noise) for spec in part]
        rows = substitution(pre, [spec.layer for spec in part], states, modality)
        done = rerun(pre, rows, keep_cache=budget > 1)
        logits = next_logits(pre, done)
        kl = kl_divergence(pre.logits[:, None], logits)
        top = logits.argmax(-1) == pre.logits.argmax(-1)[:, None]
        said = greedy(pre, done, logits, budget, stop_ids(vlm)) if budget else None
        for b in range(len(samples)):
            texts = decode_answers(vlm, said[b]) if said else [None] * len(part)
            for i, (spec, text) in enumerate(zip(part, texts, strict=True)):
                outcome = {"kl": float(kl[b, i]), "same_top1": bool(top[b, i]), "output": text}
                found[b][spec] = outcome
    plain = Spec(vlm.n_layers, vlm.n_layers)
    return [
        {
            "sample": sample.id,
            "image": sample.image_id,
            "task": sample.task,
            "modality": modality,
            **asdict(spec),
            **(outcomes[spec] if spec in outcomes else outcomes[plain]),
        }
        for sample, outcomes in zip(samples, found, strict=True)
        for spec in specs
    ]


def _run(specs: Sequence[Spec], number: int, n_layers: int) -> list[Spec]:
    """The rows that are run: own states at one layer, as a check, and the plain model."""
    own = [spec for spec in specs if spec.source_layer == spec.layer and not spec.control]
    checked = own[number % len(own)]
    others = [spec for spec in specs if spec not in own or spec == checked]
    return [*others, Spec(n_layers, n_layers)]


def _states(
    pre: Prefill, target: Index, spec: Spec, strange: Prefill | None, noise: torch.Tensor
) -> torch.Tensor:
    """What a row puts in, (B, n, D)."""
    own = pre.state(spec.layer, target)
    if spec.control in FROM_OTHER:
        new = strange.state(spec.layer, Index.of(strange.enc.is_image))
    else:
        new = pre.state(spec.source_layer, target)
    if spec.control in ("noise", FAR_NOISE):
        size = (new - own).float().norm(dim=-1, keepdim=True)
        return own + (noise * size).to(own.dtype)
    if spec.rescaled:
        norms = [state.float().norm(dim=-1, keepdim=True) for state in (own, new)]
        return new * (norms[0] / norms[1].clamp(min=1e-12)).to(new.dtype)
    return new


def _directions(samples: Sequence[Sample], target: Index, vlm: VLM, seed: int) -> torch.Tensor:
    """A random unit vector per token, (B, n, D); a function of the sample, not of its block."""
    n, width = len(target), vlm.hidden_size
    out = np.zeros((len(samples), n, width), np.float32)
    for b, sample in enumerate(samples):
        count = int(target.valid[b].sum())
        rng = np.random.default_rng([seed, *sample.id.encode()])
        out[b, n - count :] = rng.standard_normal((count, width), np.float32)
    found = torch.from_numpy(out).to(vlm.device)
    return found / found.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _scored(found: pd.DataFrame, samples: Sequence[Sample], encoder: str) -> pd.DataFrame:
    """Compare outputs with the plain one of the same sample, and score them."""
    by_id = {sample.id: sample for sample in samples}
    plain = found[(found["source_layer"] == found["layer"]) & (found["control"] == "")]
    base = found["sample"].map(plain.drop_duplicates("sample").set_index("sample")["output"])
    pairs_said = list(zip(found["output"], base, strict=True))
    distinct = list(dict.fromkeys(pairs_said))  # most outputs are alike: compare each pair once
    alike = dict(zip(distinct, similarity(*zip(*distinct, strict=True), encoder), strict=True))
    return found.assign(
        same=[a == b for a, b in pairs_said],
        similarity=[float(alike[pair]) for pair in pairs_said],
        correct=[score(by_id[s], t) for s, t in zip(found["sample"], found["output"], strict=True)],
    )
