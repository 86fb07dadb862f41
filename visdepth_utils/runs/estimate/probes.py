"""Every kind of measurement of the notebooks, called as they call it, on a few samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from visdepth_utils.claims.c6 import cut_depth
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.data.tasks import Task, load_task
from visdepth_utils.data.training_samples import training_samples
from visdepth_utils.measure.adapters import recovery_sweep
from visdepth_utils.measure.distillation import TARGET_ROWS, Distillation
from visdepth_utils.measure.evaluation import evaluate
from visdepth_utils.measure.geometry.layer_geometry import layer_geometry
from visdepth_utils.measure.geometry.token_groups import (
    BESIDE,
    GROUPS,
    own_answers,
    placed_geometry,
    text_geometry,
)
from visdepth_utils.measure.random_decoders import random_decoder
from visdepth_utils.measure.reasoning import reasoning_sweep
from visdepth_utils.measure.recovery import distill
from visdepth_utils.measure.strategies import decode
from visdepth_utils.measure.substitution import substitution_grid
from visdepth_utils.measure.teacher_forcing import token_kl
from visdepth_utils.measure.timing import time_by_depth
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.runs.estimate.workload import PILOT_COUNT

if TYPE_CHECKING:
    from visdepth_utils.models.vlm import VLM

__all__ = ["CALLS", "Bench"]

MOST = 16
"""Samples of a task that a pilot looks at, at most."""
NEW_TOKENS = 4
"""Steps of decoding that notebook 08 times behind each prefill."""


@dataclass
class Bench:
    """A model with what its measurements need of each other; for one pilot.

    Attributes:
        vlm: The model.
        n: Samples of the run: no more are taken.
        seed: Of their choice.
        source: Their data.
        folder: For adapters; deleted by whoever made it.
        claims: Entries of ``data/claims.yaml``.
    """

    vlm: VLM
    n: int
    seed: int
    source: str | Path | None
    folder: Path
    claims: dict[str, Any] = field(default_factory=lambda: load_claims()["claims"])
    _tasks: dict[str, Task] = field(default_factory=dict)
    _answers: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def cut(self) -> int:
        """Where notebook 06 cuts."""
        return cut_depth(self.claims["C6"], self.vlm.n_layers)

    def task(self, name: str, n: int = MOST) -> Task:
        """The first n samples that the run will take of a task, ``reason:long`` with its style."""
        if name not in self._tasks:
            kind, _, style = name.partition(":")
            most = min(self.n, MOST)
            self._tasks[name] = load_task(
                kind, most, self.seed, self.source, style or None, vlm=self.vlm
            )
        whole = self._tasks[name]
        return replace(whole, samples=whole.samples[:n])

    def prepared(self, kind: str, name: str, n: int) -> Task:
        """The samples, with all at hand that a measurement needs besides and does not make."""
        task = self.task(name, n)
        if kind in ("text_geometry", "placed_geometry"):
            self.answers(name)
        if kind == "adapted sweep":
            self.adapter(name)
        return task

    def answers(self, name: str) -> pd.DataFrame:
        """The model's own outputs, to be read again."""
        if name not in self._answers:
            self._answers[name] = own_answers(self.vlm, self.task(name, 4))
        return self._answers[name]

    def keep_answers(self, name: str, found: pd.DataFrame) -> None:
        """Spare ``answers`` the work."""
        self._answers[name] = found

    def adapter(self, name: str) -> Path:
        """Some adapter of the size that notebook 06 trains; what it has learnt costs nothing."""
        for state in ("cut", "whole", "any"):
            if (self.folder / f"{name}-{state}" / "adapter_config.json").is_file():
                return self.folder / f"{name}-{state}"
        return self.train(name, "any", steps=1, most=2)

    def train(
        self,
        name: str,
        state: str,
        steps: int,
        most: int = MOST,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Path:
        """Train for a few steps, on samples that will be measured: the adapter is thrown away."""
        task, entry = self.task(name, most), self.claims["C6"]
        own = {key: value for key, value in entry["distill"].items() if key != "targets"}
        own |= {"steps": steps, "batch": min(own["batch"], len(task))}
        depth = self.vlm.n_layers if state == "whole" else self.cut
        return distill(
            self.vlm,
            task,
            Distillation(depth=depth, mode=entry["mode"], **own),
            self.folder / f"{name}-{state}",
            targets=self.folder / f"{name}-{len(task)}.json",
            progress=progress,
        )

    def clocked(self, decoder: str, count: int = PILOT_COUNT) -> pd.DataFrame:
        """Rows of ``time_by_depth`` for the decoder's ends, or for the whole of the reference."""
        own = decoder == "own"
        vlm = self.vlm
        if not own:
            vlm = random_decoder("reference", device=vlm.device, dtype=vlm.dtype)
        depths = (0, vlm.n_layers) if own else (vlm.n_layers,)
        other = self.claims["C8"]["other_tokens"]
        return time_by_depth(vlm, count, other, depths, repeats=1, new_tokens=NEW_TOKENS)


def _own(bench: Bench, task: Task, _options: dict[str, Any]) -> pd.DataFrame:
    found = own_answers(bench.vlm, task)
    bench.keep_answers(_name(task), found)
    return found


Call = Callable[[Bench, Task, dict[str, Any]], Any]


def _geometry(bench: Bench, task: Task, options: dict[str, Any]) -> pd.DataFrame:
    groups = ("image", "text")[: options["groups"]]
    settings = {"seed": bench.seed, **bench.claims["C1"]["layer_geometry"]}
    return layer_geometry(bench.vlm, task, modalities=groups, **settings)


def _text(bench: Bench, task: Task, options: dict[str, Any]) -> pd.DataFrame:
    groups = (*GROUPS, *BESIDE)[: options["groups"]]
    settings = {"seed": bench.seed, **bench.claims["C2"]["layer_geometry"]}
    return text_geometry(bench.vlm, task, bench.answers(_name(task)), groups=groups, **settings)


def _placed(bench: Bench, task: Task, _options: dict[str, Any]) -> pd.DataFrame:
    settings = {"seed": bench.seed, **bench.claims["C2"]["layer_geometry"]}
    return placed_geometry(bench.vlm, task, bench.answers(_name(task)), **settings)


def _grid(bench: Bench, task: Task, options: dict[str, Any]) -> pd.DataFrame:
    settings = {**bench.claims["C3"]["substitution_grid"], **options, "seed": bench.seed}
    others = bench.task(_name(task)).samples
    return substitution_grid(
        bench.vlm, task.samples, others=others, max_new_tokens=task.max_new_tokens, **settings
    )


def _chains(bench: Bench, task: Task, _options: dict[str, Any]) -> pd.DataFrame:
    others = bench.task(_name(task)).samples
    budget = task.max_new_tokens
    return reasoning_sweep(bench.vlm, task.samples, others=others, max_new_tokens=budget)


def _name(task: Task) -> str:
    """The name by which a bench knows a task."""
    return f"{task.name}:{task.samples[0].style}" if task.name == "reason" else task.name


CALLS: dict[str, Call] = {
    "evaluate": lambda b, t, o: evaluate(b.vlm, t),
    "layer_geometry": _geometry,
    "own_answers": _own,
    "text_geometry": _text,
    "placed_geometry": _placed,
    "substitution_grid": _grid,
    "truncation_sweep": lambda b, t, o: truncation_sweep(b.vlm, t),
    "physical sweep": lambda b, t, o: truncation_sweep(b.vlm, t, implementation="physical"),
    "token_kl": lambda b, t, o: token_kl(b.vlm, t),
    "reasoning_sweep": _chains,
    "recovery_sweep": lambda b, t, o: recovery_sweep(b.vlm, t, b.cut),
    "adapted sweep": lambda b, t, o: recovery_sweep(
        b.vlm, t, b.cut, {"recovered": b.adapter(_name(t))}, plain=False
    ),
    "targets": lambda b, t, o: truncation_sweep(
        b.vlm, t, depths=[b.vlm.n_layers], max_rows=TARGET_ROWS
    ),
    "decode": lambda b, t, o: decode(b.vlm, t, depth=b.cut, strategies=[o["way"]]),
    "training_samples": lambda b, t, o: training_samples(t, o["n"], b.seed, b.source),
}
"""Kind -> its call on a few samples of a task; trainings and clocks have methods of their own."""
