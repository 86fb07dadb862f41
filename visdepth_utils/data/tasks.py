"""Tasks by name, and the two image controls: no image, and another sample's image."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visdepth_utils.common.thinking import THINKING_ROOM
from visdepth_utils.data.external import check_task, load_samples
from visdepth_utils.data.formats import FORMATS
from visdepth_utils.data.records import locate_source
from visdepth_utils.data.samples import (
    MissingTask,
    Sample,
    choose,
    is_worlds,
    read_worlds,
    to_samples,
)

if TYPE_CHECKING:
    from visdepth_utils.models.vlm import VLM

EMBEDDED: dict[str, int | dict[str, int]] = {
    "mcq": 4,
    "vqa": 6,
    "chart": 6,
    "caption": 72,
    "reason": {"direct": 8, "short": 40, "long": 120},
}
"""Embedded task -> tokens an answer may take (for ``reason`` by style)."""

DATA_SETS = tuple(name for name, form in FORMATS.items() if form.hub)
"""Data sets by their own names, from the hub or from a folder in their format."""


@dataclass(frozen=True)
class Task:
    """A named list of samples; what it says of them is for the record."""

    name: str  # by which it was loaded
    samples: list[Sample]
    max_new_tokens: int  # budget of one answer
    source: str  # where the rows came from
    # What exactly was taken: revision, split, prompt, samples, rows skipped. Empty for the embedded
    # layout, where source, n and seed say it.
    selection: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def content_hash(self) -> str:
        """Sha256 over ids, prompts, references and pixels: equal hashes mean equal data."""
        digest = hashlib.sha256()
        for sample in self.samples:
            for text in (sample.id, sample.prompt, sample.reference, *sample.references):
                digest.update(f"{len(text)}:{text}".encode())
            for image in sample.images:
                digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)


def load_task(
    name: str,
    n: int | None = None,
    seed: int = 0,
    source: str | Path | None = None,
    style: str | None = None,
    *,
    vlm: VLM | None = None,
    **options: Any,
) -> Task:
    """Load a task by name.

    Args:
        name: ``mcq``, ``vqa``, ``chart``, ``caption`` or ``reason``; or a data set: ``blink``,
            ``chartqa``, ``flickr8k``, ``scienceqa``.
        n: How many samples; None for all in file order. Pictures repeat only after each was used
            once.
        seed: Chooses which n; the choice for a smaller n is a prefix of the choice for a larger
            one.
        source: None for the embedded worlds, or the data set's own place on the hub. Else a folder
            with ``<name>.parquet`` and ``images.parquet``; or a folder, a parquet or JSONL file, or
            a hub id, in a format of ``formats``: that of a data set, or a table with the
            columns image, question, answer and, where there are options, choices.
        style: ``reason`` only: ``"direct"``, ``"short"`` or ``"long"`` (the default).
        vlm: The model that will be asked. Every row is then encoded once, and one that the model
            cannot take (a picture of a shape it refuses, more tokens than its context, a control
            token that it cannot read as text) is a bad row: found now, not in the middle of a run.
        **options: Of data in those formats: ``split``, ``subset``, ``prompt``, ``on_bad_row``, see
            ``external``.

    Returns:
        The task.

    Raises:
        MissingTask: The data has no such task.
        ValueError: Unknown task, a style it lacks, n outside 1..available, or a bad row, by number.
        FileNotFoundError: There is no such data.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, Integral)):
        raise ValueError(f"n={n!r} samples of {name!r} asked for: give a whole number, or None")
    if not isinstance(name, str) or (name not in EMBEDDED and name not in DATA_SETS):
        known = ", ".join((*EMBEDDED, *DATA_SETS))
        raise ValueError(f"unknown task {name!r}: known tasks are {known}")
    where = None if source is None else locate_source(source)
    embedded = name in EMBEDDED and where is None
    if not embedded and not (name in EMBEDDED and isinstance(where, Path) and is_worlds(where)):
        samples, budget, selection = load_samples(name, source, n, seed, vlm=vlm, **options)
        return Task(name, samples, budget, str(source or FORMATS[name].hub), selection)
    if options:
        raise ValueError(f"{', '.join(options)}: not for data in the layout of the embedded worlds")
    if name == "reason" and style is None:
        style = "long"
    rows, folder = read_worlds(name, where, style)
    if n is not None:
        if not 1 <= n <= len(rows):
            raise ValueError(
                f"n={n} samples of task {name!r} asked for, {folder} has {len(rows)}: "
                f"{'lower n' if n > 0 else 'give at least 1'}"
            )
        rows = choose(rows, n, seed)
    budget, samples = EMBEDDED[name], to_samples(rows, folder, name)
    for sample in samples if vlm else []:
        vlm.encode([sample])
    return Task(
        name=name,
        samples=samples,
        max_new_tokens=budget if isinstance(budget, int) else budget[str(style)],
        source=str(source) if source else "embedded",
    )


def available_tasks(
    n: int | None = None, seed: int = 0, source: str | Path | None = None
) -> dict[str, Task]:
    """Load all five tasks, or those that the data has (at least one, else MissingTask), by name."""
    found = {}
    for name in EMBEDDED:
        try:
            found[name] = load_task(name, n, seed, source)
        except MissingTask as error:
            last = error
    if not found:
        raise last
    return found


def missing_tasks(names: Iterable[str], source: str | Path) -> dict[str, str]:
    """Which embedded tasks the data lack, name -> why in one line: no picture is read.

    FileNotFoundError: there is no such data. ValueError: data that can be read as no task.
    """
    where, lacking = locate_source(source), {}
    for name in dict.fromkeys(names):
        try:
            if isinstance(where, Path) and is_worlds(where):
                read_worlds(name, where, None)
            else:
                check_task(name, source)
        except MissingTask as error:
            lacking[name] = str(error)
    return lacking


def samples_and_budget(
    vlm: VLM, task: Task | Sequence[Sample], max_new_tokens: int | None
) -> tuple[list[Sample], int]:
    """Samples and budget of a measurement of answers; None takes the budget of the task.

    Warns where the model thinks before it answers and the budget will not reach the answer.
    ValueError: samples without a budget, or one that is no number of tokens.
    """
    budget = getattr(task, "max_new_tokens", None) if max_new_tokens is None else max_new_tokens
    if budget is None:
        raise ValueError("samples alone have no budget for answers: give max_new_tokens")
    if isinstance(budget, bool) or not isinstance(budget, Integral) or budget < 0:
        raise ValueError(f"max_new_tokens={budget!r}: give a whole number of at least 0")
    if 0 < budget < THINKING_ROOM and (mark := vlm.thinking[1]):
        warnings.warn(
            f"{vlm.name} thinks before it answers ({mark} in its chat template), and a budget of "
            f"{budget} tokens ends before the answer, which then counts as none: give "
            f"max_new_tokens={THINKING_ROOM} or more, or a chat template that does not think",
            stacklevel=3,
        )
    return list(getattr(task, "samples", task)), budget


def without_image(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples with ``images=()``: the blind control."""
    return [replace(sample, images=()) for sample in samples]


def with_other_image(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Give every sample the pictures of another image_id: the mismatched control.

    Pictures are put in one random cycle and each is replaced by its successor, so no picture stays
    in place. ``image_id`` still names the sample's own picture: rows pair with the matched run by
    it. ValueError: fewer than two different pictures.
    """
    images = {sample.image_id: sample.images for sample in samples}
    if len(images) < 2:
        raise ValueError(
            f"another sample's image needs at least 2 different images, got {len(images)}: raise n"
        )
    ids = list(images)
    cycle = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    successor = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [replace(sample, images=images[successor[sample.image_id]]) for sample in samples]


def other_images(
    samples: Sequence[Sample], pool: Sequence[Sample] | None = None, seed: int = 0
) -> dict[str, Sample]:
    """Sample id -> the sample with another one's pictures, repeated and resized to its own.

    The other is found in ``pool``, which holds the samples; None for the samples alone. Seed and
    error as for ``with_other_image``.
    """
    pool = list(samples if pool is None else pool)
    wanted, out = {sample.id for sample in samples}, {}
    for own, other in zip(pool, with_other_image(pool, seed), strict=True):
        if own.id in wanted:
            n = len(other.images)
            fitted = (other.images[i % n].resize(p.size) for i, p in enumerate(own.images))
            out[own.id] = replace(own, images=tuple(fitted))
    return out
