"""Give a truncated model back what it lost: LoRA trained on the full model's own answers.

The student is the model with image tokens cut at a layer, the targets are the full model's greedy
outputs, y = f_full(x). Only the adapter is trained (by ``peft``), in the decoder's linear layers.
The cut stays in force while training: no gradient flows through image tokens from the cut on.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftConfig, get_peft_model

from visdepth_utils.common.files import REPO, read_object, write_text
from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import LABELS, Sample
from visdepth_utils.data.tasks import Task, samples_and_budget, with_other_image
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
from visdepth_utils.models.vlm import VLM

SHIPPED = REPO / "data" / "adapters"
TRAINED = ("recovered", "shuffled", "full trained")
"""States of a model with an adapter; beside them ``"full"`` and ``"truncated"`` have none."""
CURVE = "validation.json"
"""In an adapter's folder: [steps done, share of the learning rates spent, validation loss]."""
TRAINING = ("rate", "seed", "steps", "curve")
"""Columns of a recovery table that say which training a row is of; empty for the plain states."""


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
    """Train an adapter, or go on where a killed training was; the folder, for ``adapted``.

    ``vlm`` is the full model, unchanged afterwards; ``task`` are training samples, each with an
    image, none of those that will be tested. The folder gets the adapter in peft's own format, the
    losses and, every ``save_every`` steps, the state to resume from. ``max_new_tokens`` is the
    budget of the full model's outputs, ``targets`` their file, made where it is missing, which
    trainings on the same samples can share; None for the task's, and for one in the folder.
    Progress is called with (done, total, label); the label holds the loss.

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
    if (left := len(samples) - settings.validation) < settings.batch:
        raise ValueError(
            f"{left} samples for steps of {settings.batch}: give more, or a smaller batch"
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
        losses, curve = train(vlm, student, shown, said, settings, folder, save_every, progress)
        write_text(folder / "losses.json", json.dumps([round(x, 4) for x in losses]) + "\n")
        if curve:
            rounded = [[int(done), round(spent, 4), round(x, 4)] for done, spent, x in curve]
            write_text(folder / CURVE, json.dumps(rounded) + "\n")
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
    """Let a model run with the adapter in a folder; afterwards, always, it is as before.

    The same model is given: every measurement of this package runs on it. FileNotFoundError: the
    folder holds no adapter in safetensors. ValueError: it cannot be read, or is of another model.
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
    """What a training is a function of; two with equal facts give the same adapter."""
    facts = asdict(settings)
    if not settings.validation:  # older trainings have no such facts
        del facts["validation"], facts["every"]
    return {
        **facts,
        "weights": vlm.weights_hash,
        "n_samples": len(samples),
        "samples": _hash_of(samples),
    }


def _hash_of(samples: Sequence[Sample]) -> str:
    """Which samples these are."""
    return hashlib.sha256("\n".join(sample.id for sample in samples).encode()).hexdigest()


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
    """Settings of the training that made a state of ``TRAINED``, from those of the one to recover.

    ``"shuffled"``: with pictures shuffled among the questions; ``"full trained"``: the same budget
    on the model that is not cut.
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
    """Find the adapter of a training in ``shipped`` (every fact agrees), or train it.

    Adapters that are trained now go into ``folder``, each into one of its own; ``say`` is called
    with one line on where it is from. Raises as ``distill``.
    """
    facts = training_facts(vlm, samples, settings)
    for path, known in _whole(Path(shipped)):
        if known == facts:
            say(f"adapter {path.name}: shipped in data/adapters/{path.parent.name}")
            return path
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{samples[0].task}-d{settings.depth}{'-shuffled' if settings.shuffled else ''}"
    target = Path(folder) / f"{name}-{key}"
    heard = hashlib.sha256(f"{facts['weights']}{facts['samples']}{max_new_tokens}".encode())
    targets = Path(folder) / f"targets-{samples[0].task}-{heard.hexdigest()[:8]}.json"
    options = {"max_new_tokens": max_new_tokens, "targets": targets, "progress": progress}
    distill(vlm, samples, settings, target, **options)
    say(f"adapter {name}: trained here, {settings.steps} steps on {len(samples)} samples")
    return target


def registered(
    rule: Mapping[str, Any], depth: int, mode: str = "remove", **other: Any
) -> Distillation:
    """Settings of the first training that a claim registers (``distill`` of its entry).

    ``other``: fields of ``Distillation`` with another value.
    """
    same = ("rank", "alpha", "batch", "precision", "validation", "every")
    first = {name: rule[f"{name}s"][0] for name in ("rate", "seed")} | {"steps": rule["steps"][0]}
    return Distillation(depth, mode, **{**{name: rule[name] for name in same}, **first, **other})


def trainings(
    vlm: VLM,
    samples: Sequence[Sample],
    settings: Distillation,
    rates: Sequence[float],
    folder: str | Path,
    *,
    shipped: str | Path = SHIPPED,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, list[Path]]:
    """All trainings of a model on a task, by state of ``TRAINED``: those shipped, else made here.

    Shipped are all of the same weights, cut and samples, of any rate, seed and number of steps.
    Else one is made per rate; the whole model has the rate with the lowest validation loss. Samples
    for the validation stand last. ``options``: ``max_new_tokens`` and ``progress``; the rest as for
    ``adapter``.
    """
    found: dict[str, list[Path]] = {}
    for state in TRAINED:
        own = state_settings(settings, state, vlm.n_layers)
        found[state] = _shipped(vlm, samples, own, Path(shipped))
        for path in found[state]:
            say(f"adapter {path.name}: shipped in data/adapters/{path.parent.name}")
        if not found[state]:
            tried = rates
            if state == "full trained":
                best = chosen(found["recovered"])
                tried = [float(read_object(best / "distillation.json")["rate"])]
            found[state] = [
                adapter(
                    vlm, samples, replace(own, rate=r), folder, shipped=shipped, say=say, **options
                )
                for r in tried
            ]
    return found


def _shipped(
    vlm: VLM, samples: Sequence[Sample], settings: Distillation, shipped: Path
) -> list[Path]:
    """Folders of whole trainings that answer the same question."""
    asked = {name: getattr(settings, name) for name in ("depth", "mode", "shuffled")}
    asked["weights"] = vlm.weights_hash
    folders = []
    for path, facts in _whole(shipped):
        if all(facts.get(name) == value for name, value in asked.items()):
            n = facts["n_samples"]  # fewer samples are the first of more
            if n <= len(samples) and facts["samples"] == _hash_of(samples[:n]):
                folders.append(path)
    return folders


def _whole(shipped: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of whole adapters, and the facts of their trainings."""
    for file in sorted(shipped.glob("*/*/distillation.json")):
        if (file.parent / "adapter_model.safetensors").is_file():
            yield file.parent, read_object(file)


def chosen(folders: Sequence[Path]) -> Path:
    """The folder of the training with the lowest validation loss; the first where none has one."""
    return min(
        folders, key=lambda folder: min((p[2] for p in _curve(folder)), default=float("inf"))
    )


def _curve(folder: Path) -> list[list[float]]:
    """What ``distill`` saw of the validation loss; empty for older trainings."""
    file = folder / CURVE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def _training(folder: Path) -> dict[str, Any]:
    """The columns ``TRAINING`` of an adapter's rows."""
    file = folder / "distillation.json"
    facts = read_object(file) if file.is_file() else {}  # not one of ours: nothing is known of it
    curve = _curve(folder)
    numbers = {name: float(facts.get(name, "nan")) for name in TRAINING[:3]}
    return numbers | {"curve": json.dumps(curve) if curve else ""}


def recovery_sweep(
    vlm: VLM,
    task: Task | Sequence[Sample],
    depth: int,
    adapters: Mapping[str, str | Path | Sequence[Path]] | None = None,
    *,
    plain: bool = True,
    mode: str = "remove",
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Greedy answers of the full model, the truncated one, and each with an adapter.

    Without ``plain`` only those with one. ``adapters``: state of ``TRAINED`` -> folder of its
    adapter, or of several trainings. ``depth`` is where image tokens are cut, 0..L; other arguments
    as in ``truncation_sweep``.

    Returns:
        One row per sample and state: ``sample, image, task, kind, style, mode, cut`` (where the
        claim cuts), ``depth`` (where this state is cut; L for ``"full"`` and ``"full trained"``),
        ``state, output, score`` (the task's own, 0..1), ``chrf`` (against the reference), and of
        which training: ``rate, seed, steps, curve`` (its validation loss as JSON: a line per look,
        of steps done, share of the learning rates spent, and loss; empty where none was kept).

    Raises:
        ValueError: Unknown state; else as ``truncation_sweep``.
    """
    each = [
        (state, Path(folder))
        for state, given in (adapters or {}).items()
        for folder in ([given] if isinstance(given, str | Path) else given)
    ]
    found, sweeps = [], plain + len(each)
    none = {**dict.fromkeys(TRAINING[:3], float("nan")), "curve": ""}

    def said(depths: list[int]) -> pd.DataFrame:
        def show(done: int, total: int, label: str) -> None:
            if progress:
                progress((len(found) * total + done) // sweeps, total, label)

        options = {"mode": mode, "max_new_tokens": max_new_tokens, "progress": show}
        return truncation_sweep(vlm, task, depths=depths, **options)

    if plain:
        own = said([depth, vlm.n_layers])
        found.append(
            own.assign(state=["truncated" if d == depth else "full" for d in own["depth"]], **none)
        )
    for state, folder in each:
        settings = state_settings(Distillation(depth), state, vlm.n_layers)
        with adapted(vlm, folder):
            found.append(said([settings.depth]).assign(state=state, **_training(folder)))
    table = pd.concat(found, ignore_index=True).assign(cut=depth)
    columns = [*LABELS, "mode", "cut", "depth", "state", "output", "score", "chrf", *TRAINING]
    return table.rename(columns={"correct": "score"})[columns]
