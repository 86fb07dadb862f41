"""Give a truncated model back what it lost: LoRA trained on the full model's own answers.

The student is the model with image tokens cut at a layer, the targets are the full model's greedy
outputs, y = f_full(x). Only the adapter is trained (by ``peft``), in the decoder's linear layers.
The cut stays in force while training: no gradient flows through image tokens from the cut on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from peft import PeftConfig, get_peft_model

from visdepth_utils.common.files import REPO, read_object, write_text
from visdepth_utils.data.samples import LABELS
from visdepth_utils.data.tasks import samples_and_budget, with_other_image
from visdepth_utils.measure.distillation import (
    PRECISIONS,
    Distillation,
    lora_config,
    targets_of,
    train,
)
from visdepth_utils.measure.patching.branches import check_depths
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.models.placement import has_offloaded
from visdepth_utils.models.reading import one_line_errors, quiet

if TYPE_CHECKING:
    from visdepth_utils.data.samples import Sample
    from visdepth_utils.data.tasks import Task
    from visdepth_utils.models.vlm import VLM

__all__ = [
    "SHIPPED",
    "TRAINED",
    "adapted",
    "adapter",
    "distill",
    "recovery_sweep",
    "state_settings",
    "training_facts",
]

SHIPPED = REPO / "data" / "adapters"
TRAINED = ("recovered", "shuffled", "full trained")
"""States of a model with an adapter; beside them ``"full"`` and ``"truncated"`` have none."""
Progress = Callable[[int, int, str], None]


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
    samples, budget = samples_and_budget(vlm, task, max_new_tokens)
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
        losses = train(vlm, student, shown, said, settings, folder, save_every, progress)
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


def _kept_targets(
    vlm: VLM, samples: Sequence[Sample], budget: int, file: Path, progress: Progress | None
) -> dict[str, list[int]]:
    """The targets, from the file if it has them: a training that was killed goes on with them."""
    if file.is_file():
        targets = read_object(file)
        if set(targets) == {sample.id for sample in samples}:
            return targets
        raise ValueError(f"{file} holds outputs for other samples: delete it, or name another file")
    targets = targets_of(vlm, samples, budget, progress)
    write_text(file, json.dumps(targets) + "\n")
    return targets


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


def state_settings(settings: Distillation, state: str, n_layers: int) -> Distillation:
    """Settings of the training that made a state.

    Args:
        settings: Of the one that is to recover.
        state: One of ``TRAINED``: that one; the same with pictures shuffled among the questions;
            the same budget on the model that is not cut.
        n_layers: L.

    Returns:
        The settings.

    Raises:
        ValueError: Unknown state.
    """
    if state not in TRAINED:
        raise ValueError(f"unknown state {state!r}: use one of {', '.join(TRAINED)}")
    if state == "shuffled":
        return replace(settings, shuffled=True)
    return replace(settings, depth=n_layers) if state == "full trained" else settings


def adapter(
    vlm: VLM,
    samples: Sequence[Sample],
    settings: Distillation,
    folder: str | Path,
    *,
    max_new_tokens: int,
    shipped: str | Path = SHIPPED,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Find the adapter of a training, or train it.

    Args:
        vlm: The full model.
        samples: Training samples.
        settings: Of the training.
        folder: Where adapters that are trained now go, each into a folder of its own.
        max_new_tokens: Budget of the full model's outputs.
        shipped: Searched first, for a training that agrees in every fact.
        progress: As for ``distill``.
        say: Called with one line: taken from where, or trained.

    Returns:
        Folder of the adapter.

    Raises:
        ValueError: As ``distill``; or a shipped adapter's distillation.json is damaged.
    """
    facts = training_facts(vlm, samples, settings)
    for file in sorted(Path(shipped).glob("*/*/distillation.json")):
        whole = (file.parent / "adapter_model.safetensors").is_file()
        if whole and read_object(file) == facts:
            say(f"adapter {file.parent.name}: shipped in data/adapters/{file.parent.parent.name}")
            return file.parent
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{samples[0].task}-d{settings.depth}{'-shuffled' if settings.shuffled else ''}"
    target = Path(folder) / f"{name}-{key}"
    heard = hashlib.sha256(f"{facts['weights']}{facts['samples']}{max_new_tokens}".encode())
    targets = Path(folder) / f"targets-{samples[0].task}-{heard.hexdigest()[:8]}.json"
    options = {"max_new_tokens": max_new_tokens, "targets": targets, "progress": progress}
    distill(vlm, samples, settings, target, **options)
    say(f"adapter {name}: trained here, {settings.steps} steps on {len(samples)} samples")
    return target


def recovery_sweep(
    vlm: VLM,
    task: Task | Sequence[Sample],
    depth: int,
    adapters: Mapping[str, str | Path] | None = None,
    *,
    plain: bool = True,
    mode: str = "remove",
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Greedy answers of the full model, the truncated one, and each with an adapter.

    Args:
        vlm: The model.
        task: A task, or samples, each with an image.
        depth: Where image tokens are cut, 0..L.
        adapters: State -> folder of its adapter, for some of ``TRAINED``.
        plain: Whether the two states without an adapter are measured.
        mode: As for ``truncation_sweep``.
        max_new_tokens: Budget of an answer; None for the task's.
        progress: Called with (samples done, samples, label).

    Returns:
        One row per sample and state: ``sample, image, task, kind, style, mode, cut`` (where the
        claim cuts), ``depth`` (where this state is cut; L for ``"full"`` and ``"full trained"``),
        ``state, output, score`` (the task's own, 0..1), ``chrf`` (against the reference).

    Raises:
        ValueError: Unknown state; else as ``truncation_sweep``.
    """
    adapters = adapters or {}
    found, sweeps = [], plain + len(adapters)

    def said(depths: list[int]) -> pd.DataFrame:
        def show(done: int, total: int, label: str) -> None:
            if progress:
                progress((len(found) * total + done) // sweeps, total, label)

        options = {"mode": mode, "max_new_tokens": max_new_tokens, "progress": show}
        return truncation_sweep(vlm, task, depths=depths, **options)

    if plain:
        own = said([depth, vlm.n_layers])
        found.append(
            own.assign(state=["truncated" if d == depth else "full" for d in own["depth"]])
        )
    for state, folder in adapters.items():
        settings = state_settings(Distillation(depth), state, vlm.n_layers)
        with adapted(vlm, folder):
            found.append(said([settings.depth]).assign(state=state))
    table = pd.concat(found, ignore_index=True).assign(cut=depth)
    columns = [*LABELS, "mode", "cut", "depth", "state", "output", "score", "chrf"]
    return table.rename(columns={"correct": "score"})[columns]
