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
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil
import torch

from visdepth_utils.probes import CALLS, NEW_TOKENS, Bench

if TYPE_CHECKING:
    from visdepth_utils.vlm import VLM

__all__ = ["COLUMNS", "SIZES", "Peak", "line_through", "pilot"]

Probe = tuple[str, str, tuple[tuple[str, Any], ...]]
Clock = Callable[[], float]

SIZES: dict[str, tuple[int, int]] = {
    "evaluate": (2, 8),
    "layer_geometry": (1, 2),
    "own_answers": (2, 6),
    "text_geometry": (1, 2),
    "placed_geometry": (2, 2),
    "substitution_grid": (2, 2),
    "truncation_sweep": (1, 3),
    "physical sweep": (1, 1),
    "token_kl": (1, 4),
    "reasoning_sweep": (1, 3),
    "recovery_sweep": (2, 6),
    "adapted sweep": (2, 6),
    "training_samples": (8, 64),
    "targets": (4, 16),
    "decode": (1, 6),
}
"""Kind -> numbers of samples at which it is measured."""

COLUMNS = (
    "kind",
    "task",
    "options",
    "call_s",
    "unit_s",
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
SHORT_S = 1.0
"""The first of a kind that takes less is repeated: much of it may be what happens only once."""
START = """import psutil
from visdepth_utils import layer_geometry, load_task, load_vlm, truncation_sweep, verdict
from visdepth_utils.plots import depth_curves
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


class Peak:
    """Growth of the device's memory while a block of code runs: ``with Peak(device) as peak``.

    On a CPU a thread beside it reads the memory of the process every few milliseconds.

    Attributes:
        growth: Largest bytes above what was held at the start; valid behind the block.
    """

    def __init__(self, device: torch.device) -> None:
        """Watch a device."""
        self.device, self.growth = device, 0
        self._stop = threading.Event()

    def __enter__(self) -> Peak:
        """Start to watch."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._process = psutil.Process()
            self._before = self._process.memory_info().rss
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Keep the largest."""
        if self.device.type == "cuda":
            self.growth = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.growth = max(self.growth, self._process.memory_info().rss - self._before)


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
        of each sample in it), ``unit_bytes`` (growth of memory per sample of a block, of the device
        the model runs on; of ``start`` the whole process, of loads the weights), ``call_disk,
        unit_disk`` (bytes of tables) and ``note``: why it could not be measured.
    """
    wanted = [probe for probe in dict.fromkeys(probes) if probe[0] != "load"]
    rows: list[dict[str, Any]] = [_start(vlm, clock), *_loads(vlm, load_s, clock)]
    warm: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(vlm, n, seed, source, Path(folder))
        for done, (kind, task, options) in enumerate(wanted):
            row = {"kind": kind, "task": task, "options": json.dumps(options)}
            try:
                found = _measured(bench, kind, task, dict(options), kind in warm, clock)
            except (ValueError, MemoryError, RuntimeError) as error:
                found = {"note": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            rows.append(row | found)
            warm.add(kind)
            if progress:
                progress(done + 1, len(wanted), f"pilot, {kind} {task}".rstrip())
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = list(COLUMNS[3:-1])
    return table.assign(note=table["note"].fillna(""), **table[numbers].astype(float))


def _measured(
    bench: Bench, kind: str, task: str, options: dict[str, Any], warm: bool, clock: Clock
) -> dict[str, Any]:
    """Numbers of one row; the first of its kind runs once without being counted."""
    if kind == "time_by_depth":
        found = bench.clocked(task, **options)
        once = found[~found["again"]]
        decoding = NEW_TOKENS * once["decode_s"] if task == "own" else 0
        return _row(0.0, (once["prefill_s"] + decoding).mean(), 0, 0, 60)
    if kind == "distill":
        stamps = [clock()]
        with Peak(bench.vlm.device) as peak:
            folder = bench.train(
                task,
                options["state"],
                STEPS,
                progress=lambda done, total, label: stamps.append(clock()),
            )
        kept = sum(file.stat().st_size for file in folder.iterdir())
        return _row(0.0, stamps[-1] - stamps[-2], peak.growth, kept, 0)
    drawn = kind == "training_samples"  # beside those of the run, and more than it has
    sizes = list(SIZES[kind]) if drawn else sorted({min(size, bench.n) for size in SIZES[kind]})
    found = []
    while len(found) < len(sizes):
        size = sizes[len(found)]
        samples = bench.task(task, 2 if drawn else size)
        if kind in ("text_geometry", "placed_geometry"):
            bench.answers(task)
        if kind == "adapted sweep":
            bench.adapter(task)
        with Peak(bench.vlm.device) as peak:
            start = clock()
            table = CALLS[kind](bench, samples, {"n": size} if drawn else options)
            spent = clock() - start
        if not warm and spent < SHORT_S:
            warm = True
            continue
        found.append((size, spent, peak.growth, _parquet_bytes(table)))
        if spent > LONG_S:
            break
    few, many = found[0], found[-1]
    call_s, unit_s = line_through((few[0], many[0]), (few[1], many[1]))
    call_disk, unit_disk = line_through((few[0], many[0]), (few[3], many[3]))
    return _row(call_s, unit_s, many[2] / many[0], call_disk, unit_disk)


def _start(vlm: VLM, clock: Clock) -> dict[str, Any]:
    """A process that imports what a notebook imports: its seconds, and its memory on a CPU."""
    start = clock()
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    spent = clock() - start
    held = int(done.stdout.split()[-1]) if vlm.device.type == "cpu" else 0
    return {"kind": "start", "task": "", "options": "[]"} | _row(0.0, spent, held, 0, 0)


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
        {"kind": "load", "task": how, "options": "[]"} | _row(0.0, spent, held, 0, 0)
        for how, spent in seconds.items()
    ]


def _row(call_s: float, unit_s: float, memory: float, call_disk: float, unit_disk: float) -> dict:
    numbers = (call_s, unit_s, memory, call_disk, unit_disk)
    return dict(zip(COLUMNS[3:-1], numbers, strict=True))


def _parquet_bytes(table: Any) -> int:
    """Size of a table as the step cache keeps it; 0 for what is no table."""
    if not isinstance(table, pd.DataFrame):
        return 0
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getbuffer().nbytes
