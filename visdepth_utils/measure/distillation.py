"""The steps of a distillation: its settings, what is learnt from, the loss, and how it resumes."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, PeftModel

from visdepth_utils.common.errors import first_line
from visdepth_utils.common.files import atomic
from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import Sample
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.models.encoding import append_tokens
from visdepth_utils.models.vlm import VLM

PRECISIONS = ("bfloat16", "float32")
TARGET_ROWS = 64
"""Samples at once while the full model speaks: often enough for progress, and fast on a CPU."""


@dataclass(frozen=True)
class Distillation:
    """Settings of a training; the paper's are not stated in what we read."""

    depth: int  # where image tokens are cut, 0..L; L trains the model that is not cut
    mode: str = "remove"  # as for ``truncation_sweep``
    rank: int = 8  # of the adapter
    alpha: int = 16  # the adapter's scale is alpha / rank
    rate: float = 5e-4  # highest; warm-up over the first tenth, then a cosine to 0
    steps: int = 200  # of the optimiser
    batch: int = 16  # samples in a step
    precision: str = "bfloat16"  # forward pass under autocast, or "float32"; adapters are float32
    seed: int = 0  # of the adapter's start and of the order
    shuffled: bool = False  # another sample's picture: all can be learnt but what is in the picture
    # So many samples, the last ones, are kept out of the training: the weights with the lowest loss
    # on them are kept. 0 for none.
    validation: int = 0
    every: int = 20  # steps between two looks at it


def lora_config(vlm: VLM, settings: Distillation) -> LoraConfig:
    """LoRA on every linear layer of the decoder, and nowhere else."""
    inside = {id(module) for layer in vlm.layers for module in layer.modules()}
    names = [
        name
        for name, module in vlm.model.named_modules()
        if isinstance(module, torch.nn.Linear) and id(module) in inside
    ]
    return LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=0.0, target_modules=names
    )


def targets_of(
    vlm: VLM, samples: Sequence[Sample], budget: int, progress: Progress | None = None
) -> dict[str, list[int]]:
    """Sample id -> what the full model says, with the token that ends it."""
    full = truncation_sweep(
        vlm,
        samples,
        depths=[vlm.n_layers],
        max_new_tokens=budget,
        with_token_ids=True,
        max_rows=TARGET_ROWS,
        progress=progress and (lambda done, total, _: progress(done, total, "targets")),
    )
    said = zip(full["sample"], full["token_ids"], full["end"], strict=True)
    return {name: ids if pd.isna(end) else [*ids, int(end)] for name, ids, end in said}


def train(
    vlm: VLM,
    student: PeftModel,
    samples: Sequence[Sample],
    targets: dict[str, list[int]],
    settings: Distillation,
    folder: Path,
    save_every: int,
    progress: Progress | None,
) -> tuple[list[float], list[list[float]]]:
    """The steps that are left; the state is saved as one file, so that a kill loses no more.

    The second list has a line per look at the validation loss: steps done, share of all the
    learning rates spent, loss. Where there is one, the weights with the lowest loss are left.
    """
    held_out = list(samples[len(samples) - settings.validation :])
    samples = samples[: len(samples) - settings.validation]
    weights = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0)
    half = settings.precision == "bfloat16"
    autocast = torch.autocast(vlm.device.type, torch.bfloat16, enabled=half)
    state, losses, curve = folder / "state.pt", [], []
    best = [w.data.clone() for w in weights]
    rates = np.cumsum([_schedule(step, settings.steps) for step in range(settings.steps)])
    if state.is_file():
        try:
            saved = torch.load(state, weights_only=True, map_location=vlm.device)
            optimiser.load_state_dict(saved["optimiser"])
            for weight, value in zip(weights, saved["weights"], strict=True):
                weight.data.copy_(value)
            losses, curve = list(saved["losses"]), list(saved.get("validation", []))
            best = saved.get("best") or best
        except Exception as error:  # damaged bytes fail in torch in many ways; none runs code
            raise ValueError(
                f"{state} is no state of this training ({first_line(error)}): "
                "delete it and run again"
            ) from error

    def look(done: int) -> None:
        if not held_out or (done % settings.every and done < settings.steps):
            return
        with autocast, torch.no_grad():
            loss = _mean_loss(vlm, held_out, targets, settings)
        if not curve or loss < min(point[2] for point in curve):
            best[:] = [w.data.clone() for w in weights]
        curve.append([done, float(rates[done - 1] / rates[-1]) if done else 0.0, loss])

    if not losses:
        look(0)
    for step in range(len(losses), settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * _schedule(step, settings.steps)
        batch = [samples[i] for i in _chosen(len(samples), settings, step)]
        with autocast:
            loss = answer_loss(vlm, batch, targets, settings.depth, settings.mode)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        look(step + 1)
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            with atomic(state) as temporary:
                kept = {"weights": [w.data for w in weights], "losses": losses}
                kept |= {"best": best, "validation": curve} if held_out else {}
                torch.save(kept | {"optimiser": optimiser.state_dict()}, temporary)
        if progress:
            recent = np.mean(losses[-10:])
            progress(step + 1, settings.steps, f"distillation, loss {recent:.3f}")
    if held_out:
        for weight, value in zip(weights, best, strict=True):
            weight.data.copy_(value)
    return losses, curve


def _mean_loss(
    vlm: VLM, samples: Sequence[Sample], targets: dict[str, list[int]], settings: Distillation
) -> float:
    """Mean over all answer tokens, batch by batch."""
    total = tokens = 0.0
    for start in range(0, len(samples), settings.batch):
        part = samples[start : start + settings.batch]
        n = sum(len(targets[sample.id]) for sample in part)
        total += n * float(answer_loss(vlm, part, targets, settings.depth, settings.mode))
        tokens += n
    return total / tokens


def _chosen(n: int, settings: Distillation, step: int) -> np.ndarray:
    """Indices of a step's samples: all n in a random order, then all of them in another."""
    per_round = n // settings.batch
    order = np.random.default_rng([settings.seed, step // per_round]).permutation(n)
    start = step % per_round * settings.batch
    return order[start : start + settings.batch]


def answer_loss(
    vlm: VLM,
    samples: Sequence[Sample],
    targets: dict[str, list[int]],
    depth: int,
    mode: str = "remove",
) -> torch.Tensor:
    """Mean cross entropy of the answers' tokens under truncation, each token with equal weight.

    ``targets``: sample id -> token ids of its answer. A scalar, with its graph.
    """
    said = [targets[sample.id] for sample in samples]
    enc = append_tokens(vlm, vlm.encode(samples), said)
    longest = max(len(ids) for ids in said)
    cut = contextlib.nullcontext()
    if depth < vlm.n_layers:
        cut = truncated(vlm, enc, depth, mode)
    with cut:
        out = vlm.model(**enc.inputs, use_cache=False, logits_to_keep=longest + 1)
    logits = out.logits[:, -longest - 1 : -1].float()  # not every class keeps only those
    goal = enc.inputs["input_ids"][:, -longest:].clone()
    for b, ids in enumerate(said):
        goal[b, : longest - len(ids)] = -100
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), goal.flatten())


def _schedule(step: int, steps: int) -> float:
    """Warm-up over the first tenth, then a cosine to 0."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))
