"""Give a truncated model back what it lost: LoRA trained on the full model's own answers.

The student is the model with image tokens cut at a layer, the targets are the full model's greedy
outputs, y = f_full(x). Only the adapter is trained (by ``peft``), in the decoder's linear layers.
The cut stays in force while training: no gradient flows through image tokens behind it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from visdepth_utils.checkpoints import one_line_errors, quiet
from visdepth_utils.encoding import followed
from visdepth_utils.files import atomic, read_object, write_text
from visdepth_utils.interventions import truncated
from visdepth_utils.placement import has_offloaded
from visdepth_utils.sweeps import stop_ids, truncation_sweep
from visdepth_utils.tasks import samples_and_budget, with_other_image
from visdepth_utils.variants import check_depths

if TYPE_CHECKING:
    from visdepth_utils.datasets import Sample
    from visdepth_utils.tasks import Task
    from visdepth_utils.vlm import VLM

__all__ = ["Distillation", "adapted", "distill", "training_facts"]

Progress = Callable[[int, int, str], None]
PRECISIONS = ("bfloat16", "float32")
TARGET_ROWS = 64
"""Samples at once while the full model speaks: often enough for progress, and fast on a CPU."""


@dataclass(frozen=True)
class Distillation:
    """Settings of a training; the paper's are not stated in what we read.

    Attributes:
        depth: Where image tokens are cut, 0..L; L trains the model that is not cut.
        mode: As for ``truncation_sweep``.
        rank: Of the adapter.
        alpha: Its scale is alpha / rank.
        rate: Highest learning rate; warm-up over the first tenth, then a cosine to 0.
        steps: Optimiser steps.
        batch: Samples in a step.
        precision: ``"bfloat16"`` runs the training's forward pass under autocast, which is faster;
            or ``"float32"``. The adapter itself is kept in float32 either way.
        seed: Of the adapter's start and of the order.
        shuffled: Train with another sample's picture: a control that can learn everything but what
            is in the picture.
    """

    depth: int
    mode: str = "remove"
    rank: int = 8
    alpha: int = 16
    rate: float = 5e-4
    steps: int = 200
    batch: int = 16
    precision: str = "bfloat16"
    seed: int = 0
    shuffled: bool = False


def distill(
    vlm: VLM,
    task: Task | Sequence[Sample],
    settings: Distillation,
    folder: str | Path,
    *,
    max_new_tokens: int | None = None,
    targets: str | Path | None = None,
    save_every: int = 20,
    progress: Progress | None = None,
) -> Path:
    """Train an adapter, or go on where a killed training was.

    Args:
        vlm: The full model; it is unchanged afterwards.
        task: Training samples, each with an image; none of those that will be tested.
        settings: Of the training.
        folder: For the adapter, in peft's own format, the losses and the state to resume from.
        max_new_tokens: Budget of the full model's outputs; None for the task's.
        targets: File of the full model's outputs, made where it is missing; None for one in the
            folder. Trainings on the same samples can share it.
        save_every: Steps between states.
        progress: Called with (done, total, label); the label holds the loss.

    Returns:
        The folder; ``adapted`` applies what is in it.

    Raises:
        ValueError: Depth out of range, fewer samples than a batch, unknown precision, no budget,
            offloaded weights, or a folder that holds a training with other settings or samples.
    """
    samples, budget = samples_and_budget(task, max_new_tokens)
    check_depths(vlm, [settings.depth], settings.mode)
    if settings.precision not in PRECISIONS:
        known = " or ".join(PRECISIONS)
        raise ValueError(f"precision {settings.precision!r} is unknown: use {known}")
    if has_offloaded(vlm.model):
        raise ValueError(
            f"{vlm.name} has weights that lie offloaded on CPU or disk, which cannot be trained: "
            "load it with a device_map that spreads it over accelerators only"
        )
    if len(samples) < settings.batch:
        raise ValueError(
            f"{len(samples)} samples for steps of {settings.batch}: give more, or a smaller batch"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _same_training(folder / "distillation.json", training_facts(vlm, samples, settings))
    shown = with_other_image(samples, settings.seed) if settings.shuffled else samples
    file = Path(targets) if targets else folder / "targets.json"
    said = _kept_targets(vlm, samples, budget, file, progress)
    torch.manual_seed(settings.seed)
    with quiet():
        student = get_peft_model(vlm.model, lora_config(vlm, settings))
    try:
        losses = _train(vlm, student, shown, said, settings, folder, save_every, progress)
        write_text(folder / "losses.json", json.dumps([round(x, 4) for x in losses]) + "\n")
        student.peft_config["default"].base_model_name_or_path = vlm.name
        with quiet():
            student.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    finally:
        student.unload()
        vlm.model.requires_grad_(False)
    return folder


@contextlib.contextmanager
def adapted(vlm: VLM, folder: str | Path) -> Iterator[VLM]:
    """Let a model run with an adapter; afterwards, also after an error, it is as before.

    Args:
        vlm: The model.
        folder: Of ``distill``, or of any peft adapter of this model.

    Yields:
        The same model: every measurement of this package runs on it.

    Raises:
        FileNotFoundError: If the folder holds no adapter in safetensors.
        ValueError: If it cannot be read, or is of another model.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"no adapter in {folder}: train one with distill")
    if not (folder / "adapter_model.safetensors").is_file():  # peft would take a pickle instead
        raise FileNotFoundError(f"no adapter_model.safetensors in {folder}: train it again")
    name = str(folder)
    with quiet(), one_line_errors(name, name):
        config = PeftConfig.from_pretrained(name)
        config.inference_mode = True
        # Not PeftModel.from_pretrained: where the weights do not fit, it leaves the model changed.
        student = get_peft_model(vlm.model, config)
    try:
        with quiet(), one_line_errors(name, name):
            lacking = student.load_adapter(name, "default").missing_keys
        if lacking:
            raise ValueError(
                f"the adapter in {folder} lacks {len(lacking)} weights (first {lacking[0]}): it is "
                "of another model, train one for this"
            )
        student.eval()
        yield vlm
    finally:
        student.unload()
        vlm.model.requires_grad_(False)


def training_facts(vlm: VLM, samples: Sequence[Sample], settings: Distillation) -> dict[str, Any]:
    """What a training is a function of; two with equal facts give the same adapter.

    Args:
        vlm: The full model.
        samples: Training samples.
        settings: Of the training.

    Returns:
        Plain values, as ``distillation.json`` keeps them.
    """
    ids = "\n".join(sample.id for sample in samples)
    return {
        **asdict(settings),
        "weights": vlm.weights_hash,
        "n_samples": len(samples),
        "samples": hashlib.sha256(ids.encode()).hexdigest(),
    }


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


def _kept_targets(
    vlm: VLM, samples: Sequence[Sample], budget: int, file: Path, progress: Progress | None
) -> dict[str, list[int]]:
    """The targets, from the file if it has them: a training that was killed goes on with them."""
    if file.is_file():
        targets = read_object(file)
        if set(targets) == {sample.id for sample in samples}:
            return targets
        raise ValueError(f"{file} holds outputs for other samples: delete it, or name another file")
    targets = _targets(vlm, samples, budget, progress)
    write_text(file, json.dumps(targets) + "\n")
    return targets


def _targets(
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
    ends = stop_ids(vlm)[:1]
    return {
        name: [*ids, *(ends if len(ids) < budget else [])] or ends
        for name, ids in zip(full["sample"], full["token_ids"], strict=True)
    }


def _train(
    vlm: VLM,
    student: PeftModel,
    samples: Sequence[Sample],
    targets: dict[str, list[int]],
    settings: Distillation,
    folder: Path,
    save_every: int,
    progress: Progress | None,
) -> list[float]:
    """The steps that are left; the state is saved as one file, so that a kill loses no more."""
    weights = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0)
    half = settings.precision == "bfloat16"
    autocast = torch.autocast(vlm.device.type, torch.bfloat16, enabled=half)
    state, losses = folder / "state.pt", []
    if state.is_file():
        try:
            saved = torch.load(state, weights_only=True, map_location=vlm.device)
            optimiser.load_state_dict(saved["optimiser"])
            for weight, value in zip(weights, saved["weights"], strict=True):
                weight.data.copy_(value)
            losses = list(saved["losses"])
        except Exception as error:  # damaged bytes fail in torch in many ways; none runs code
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{state} is no state of this training ({why:.160}): delete it and run again"
            ) from error
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
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            with atomic(state) as temporary:
                kept = {"weights": [w.data for w in weights], "losses": losses}
                torch.save(kept | {"optimiser": optimiser.state_dict()}, temporary)
        if progress:
            recent = np.mean(losses[-10:])
            progress(step + 1, settings.steps, f"distillation, loss {recent:.3f}")
    return losses


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

    Args:
        vlm: The model, with or without an adapter.
        samples: A batch.
        targets: Sample id -> token ids of its answer.
        depth: 0..L.
        mode: As for ``truncation_sweep``.

    Returns:
        A scalar, with its graph.
    """
    said = [targets[sample.id] for sample in samples]
    enc = followed(vlm, vlm.encode(samples), said)
    longest = max(len(ids) for ids in said)
    cut = contextlib.nullcontext()
    if depth < vlm.n_layers:
        cut = truncated(vlm, enc, depth, mode)
    with cut:
        out = vlm.model(**enc.inputs, use_cache=False, logits_to_keep=longest + 1)
    logits = out.logits[:, :-1].float()
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


def _same_training(file: Path, facts: dict) -> None:
    """Refuse a folder of another training; note this one's facts in a new folder."""
    if not file.is_file():
        write_text(file, json.dumps(facts, indent=1) + "\n")
        return
    old = read_object(file)
    if changed := sorted(key for key in facts if old.get(key) != facts[key]):
        raise ValueError(
            f"{file.parent} holds a training with other {', '.join(changed)}: "
            "choose another folder or delete it"
        )
