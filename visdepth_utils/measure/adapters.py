"""Adapters of a claim, shipped or trained now, and what the model says with each of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from visdepth_utils.common.files import REPO, read_object
from visdepth_utils.data.samples import LABELS
from visdepth_utils.measure.distillation import Distillation
from visdepth_utils.measure.recovery import adapted, distill, training_facts
from visdepth_utils.measure.truncation import truncation_sweep

if TYPE_CHECKING:
    from visdepth_utils.data.tasks import Sample, Task
    from visdepth_utils.models.vlm import VLM

__all__ = ["SHIPPED", "TRAINED", "adapter", "recovery_sweep", "state_settings"]

Progress = Callable[[int, int, str], None]
SHIPPED = REPO / "data" / "adapters"
TRAINED = ("recovered", "shuffled", "full trained")
"""States of a model with an adapter; beside them ``"full"`` and ``"truncated"`` have none."""


def state_settings(settings: Distillation, state: str, n_layers: int) -> Distillation:
    """Settings of the training behind a state.

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
