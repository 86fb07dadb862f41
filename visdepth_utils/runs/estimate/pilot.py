"""A few samples of every kind of measurement, timed: what a run will cost is told from these.

Each kind is measured at two numbers of samples, and its cost is the line through both: a block of n
samples takes ``a + b n`` seconds. On a CPU ``a`` is large where answers are generated: a step of
decoding costs nearly the same for two samples as for ten.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from visdepth_utils.common.errors import named_line
from visdepth_utils.runs.estimate.footprint import Peak, held_memory
from visdepth_utils.runs.estimate.probes import CALLS, NEW_TOKENS, Bench

if TYPE_CHECKING:
    from visdepth_utils.models.vlm import VLM

__all__ = ["COLUMNS", "SIZES", "line_through", "pilot"]

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
