"""A few samples of every kind of measurement, timed: what a run will cost is told from these.

Each kind is called as the notebooks call it, at two numbers of samples, and its cost is the line
through both: a block of n samples takes ``a + b n`` seconds. On a CPU ``a`` is large where answers
are generated: a step of decoding costs nearly the same for two samples as for ten.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil
import torch

from visdepth_utils.claims.c6 import cut_depth
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.common.errors import named_line
from visdepth_utils.data.tasks import Task, load_task
from visdepth_utils.data.training_samples import training_samples
from visdepth_utils.measure.distillation import TARGET_ROWS
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
from visdepth_utils.measure.recovery import distill, recovery_sweep, registered
from visdepth_utils.measure.strategies import decode
from visdepth_utils.measure.substitution import substitution_grid
from visdepth_utils.measure.teacher_forcing import token_kl
from visdepth_utils.measure.timing import time_by_depth
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.runs.estimate.steps import PILOT_COUNT

if TYPE_CHECKING:
    from visdepth_utils.models.vlm import VLM

MOST = 16
"""Samples of a task that a pilot looks at, at most."""
NEW_TOKENS = 4
"""Steps of decoding that notebook 08 times after each prefill."""


@dataclass
class Bench:
    """A model with what its measurements need of each other; for one pilot.

    Attributes:
        vlm: The model.
        n: Samples of the run: no more are taken.
        seed: Of their choice.
        source: Their data.
        folder: For adapters; deleted by its owner.
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
        rule = entry["distill"]
        own = {"steps": steps, "batch": min(rule["batch"], len(task)), "validation": 0}
        depth = self.vlm.n_layers if state == "whole" else self.cut
        return distill(
            self.vlm,
            task,
            registered(rule, depth, entry["mode"], **own),
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


Probe = tuple[str, str, tuple[tuple[str, Any], ...]]
Clock = Callable[[], float]

SIZES: dict[str, tuple[int, int]] = {
    "evaluate": (2, 8),
    "layer_geometry": (1, 2),
    "own_answers": (2, 6),
    "text_geometry": (1, 2),
    "placed_geometry": (2, 2),
    "substitution_grid": (1, 2),
    "truncation_sweep": (1, 3),
    "physical sweep": (1, 1),
    "token_kl": (1, 4),
    "reasoning_sweep": (1, 3),
    "recovery_sweep": (2, 6),
    "adapted sweep": (2, 6),
    "training_samples": (8, 64),
    "targets": (4, 16),
    "decode": (1, 4),
}
"""Kind -> numbers of samples at which it is measured."""

COLUMNS = (
    "kind",
    "task",
    "options",
    "call_s",
    "unit_s",
    "call_bytes",
    "unit_bytes",
    "call_disk",
    "unit_disk",
    "note",
)
STEPS = 2
"""Of each training; the first is not counted."""
LONG_S = 10.0
"""A first measurement that takes longer is not followed by a larger one: the model is slow enough
for its fixed costs to be small."""
ROW_DISK = 60
"""Bytes of a row of times in a table."""
SHORT_S = 1.0
"""The first of a kind that takes less is repeated: much of it may be what happens only once."""
START = """import psutil
from visdepth_utils import layer_geometry, load_task, load_vlm, truncation_sweep, verdict
from visdepth_utils.plots.geometry import depth_curves
print(psutil.Process().memory_info().rss)"""
"""What every notebook does first."""


def held_memory(device: torch.device) -> int:
    """Bytes that are held on the device; on a CPU those of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


class Peak:
    """Growth of the device's memory while a block of code runs: ``with Peak(device) as peak``.

    On a CPU a thread beside it reads the memory of the process every few milliseconds. What the
    process holds free is given back first: growth into it would not be seen.

    Attributes:
        before: Bytes held at the start.
        growth: Largest bytes above that; valid after the block.
    """

    def __init__(self, device: torch.device) -> None:
        """Watch a device."""
        self.device, self.before, self.growth = device, 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        """Start to watch."""
        if self.device.type != "cuda":
            _give_back()
        self.before = held_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Keep the largest."""
        if self.device.type == "cuda":
            self.growth = torch.cuda.max_memory_allocated(self.device) - self.before
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.growth = max(self.growth, held_memory(self.device) - self.before)


def _give_back() -> None:
    """Return to the system what this process has freed; only glibc has to be told to."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def line_through(n: tuple[float, float], y: tuple[float, float]) -> tuple[float, float]:
    """Fixed cost and cost per unit, neither below 0, from two measurements.

    Where the second costs no more than the first, all is fixed; where it costs more than in
    proportion, nothing is.

    Args:
        n: Two sizes, the smaller first; equal sizes are one measurement, without a fixed cost.
        y: What they cost.

    Returns:
        (a, b) of ``a + b n``, through the second point.
    """
    (few, many), (low, high) = n, y
    if few == many or high * few >= low * many:
        return 0.0, high / many
    slope = max((high - low) / (many - few), 0.0)
    return high - slope * many, slope


def pilot(
    vlm: VLM,
    probes: Iterable[Probe],
    *,
    n: int,
    seed: int = 0,
    source: str | Path | None = None,
    load_s: float = 0.0,
    clock: Clock = time.perf_counter,
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Measure what each kind of measurement costs on this model and machine.

    Args:
        vlm: The model.
        probes: What to measure: ``Step.probe`` of all steps of a run; repeated ones count once.
        n: Samples of the run; the pilot takes no more.
        seed: Of the choice of samples, as in the run.
        source: Their data.
        load_s: Seconds that loading the model took.
        clock: Seconds.
        progress: Called with (done, total, label).

    Returns:
        One row per probe, and one each for ``start`` (a process with all that a notebook imports)
        and the loads: ``kind, task, options`` (JSON), ``call_s, unit_s`` (seconds of a block, and
        of each sample in it), ``call_bytes, unit_bytes`` (memory of the device the model runs on:
        what measurements before it have left with its own growth for a block, and that for each
        sample in it; of ``start`` the whole process, of loads the weights), ``call_disk,
        unit_disk`` (bytes of tables) and ``note``: why it could not be measured.
    """
    wanted = [probe for probe in dict.fromkeys(probes) if probe[0] != "load"]
    rows: list[dict[str, Any]] = [_start(vlm, clock), *_loads(vlm, load_s, clock)]
    warm: set[str] = set()
    before = held_memory(vlm.device)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(vlm, n, seed, source, Path(folder))
        for done, (kind, task, options) in enumerate(wanted):
            row = {"kind": kind, "task": task, "options": json.dumps(options)}
            try:
                found = _measured(bench, kind, task, dict(options), kind in warm, clock)
            except (ValueError, MemoryError, RuntimeError) as error:
                found = {"note": named_line(error)}
            if "left" in found:
                found["call_bytes"] += max(found.pop("left") - before, 0)
            rows.append(row | found)
            warm.add(kind)
            if progress:
                progress(done + 1, len(wanted), f"pilot, {kind} {task}".rstrip())
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = list(COLUMNS[3:-1])
    return table.assign(
        note=table["note"].astype(object).fillna(""), **table[numbers].astype(float)
    )


def _measured(
    bench: Bench, kind: str, task: str, options: dict[str, Any], warm: bool, clock: Clock
) -> dict[str, Any]:
    """Numbers of one row, and ``left``, the memory held before its largest measurement."""
    if kind == "time_by_depth":
        return _clocked(bench, task, **options)
    if kind == "distill":
        return _trained(bench, task, clock, **options)
    drawn = kind == "training_samples"  # beside those of the run, and more than it has
    sizes = SIZES[kind] if drawn else tuple(min(size, bench.n) for size in SIZES[kind])
    points: list[tuple[int, float, float, int]] = []
    while len(points) < len(set(sizes)):
        size = sizes[len(points)]
        samples = bench.prepared(kind, task, 2 if drawn else size)
        with Peak(bench.vlm.device) as peak:
            start = clock()
            table = CALLS[kind](bench, samples, {"n": size} if drawn else options)
            spent = clock() - start
        if not warm and spent < SHORT_S:  # the first of its kind, and cheap: once more
            warm = True
            continue
        points.append((size, spent, peak.growth, _parquet_bytes(table)))
        if spent > LONG_S:
            break
    (few, *low), (many, *high) = points[0], points[-1]
    lines = [line_through((few, many), ends) for ends in zip(low, high, strict=True)]
    return _row(*lines) | {"left": peak.before}


def _clocked(bench: Bench, decoder: str, **options: Any) -> dict[str, Any]:
    """A run of a decoder as notebook 08 times it: the mean of its ends, cost being linear."""
    with Peak(bench.vlm.device) as peak:
        found = bench.clocked(decoder, **options)
    once = found[~found["again"]]
    # Of the reference decoder, which has more tokens, only the prefill is counted.
    decoding = NEW_TOKENS * once["decode_s"] if decoder == "own" else 0
    spent = (once["prefill_s"] + decoding).mean()
    return _row((0, spent), (0, peak.growth), (0, ROW_DISK)) | {"left": peak.before}


def _trained(bench: Bench, task: str, clock: Clock, state: str) -> dict[str, Any]:
    """A step of training, and what the adapter and its optimiser take on disk."""
    stamps: list[float] = []
    with Peak(bench.vlm.device) as peak:
        folder = bench.train(task, state, STEPS, progress=lambda *_: stamps.append(clock()))
    kept = sum(file.stat().st_size for file in folder.iterdir())
    spent = stamps[-1] - stamps[-2]
    return _row((0, spent), (0, peak.growth), (kept, 0)) | {"left": peak.before}


def _start(vlm: VLM, clock: Clock) -> dict[str, Any]:
    """A process that imports what a notebook imports: its seconds, and its memory on a CPU."""
    start = clock()
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    spent = clock() - start
    held = int(done.stdout.split()[-1]) if vlm.device.type == "cpu" else 0
    return {"kind": "start", "task": "", "options": "[]"} | _row((0, spent), (0, held))


def _loads(vlm: VLM, load_s: float, clock: Clock) -> list[dict[str, Any]]:
    """Reading the model, and drawing it: as reading, and the time of so many random numbers."""
    weights = list(vlm.model.parameters())
    count = sum(p.numel() for p in weights)
    held = sum(p.numel() * p.element_size() for p in weights)
    some = torch.empty(min(count, 4_000_000))
    start = clock()
    some.normal_()
    drawn = (clock() - start) * count / max(some.numel(), 1)
    seconds = {"trained": load_s, "random": load_s + drawn, "decoder": load_s + drawn}
    return [
        {"kind": "load", "task": how, "options": "[]"} | _row((0, spent), (0, held))
        for how, spent in seconds.items()
    ]


def _row(
    seconds: tuple[float, float], memory: tuple[float, float], disk: tuple[float, float] = (0, 0)
) -> dict[str, Any]:
    """Columns of numbers: of each pair the fixed cost, then that of a unit."""
    return dict(zip(COLUMNS[3:-1], (*seconds, *memory, *disk), strict=True))


def _parquet_bytes(table: Any) -> int:
    """Size of a table as the step cache keeps it; 0 for what is no table."""
    if not isinstance(table, pd.DataFrame):
        return 0
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getbuffer().nbytes
