"""Sums: what a pilot measured, times what the notebooks do, against what is free. No model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from visdepth_utils.common.progress import duration
from visdepth_utils.runs.estimate.workload import BLOCKS, Step

__all__ = ["NOTEBOOK_DISK", "OVERHEAD", "DoesNotFit", "check", "copies", "estimate"]

OVERHEAD = 2.3
"""Kernel, statistics and figures of a notebook beside its measurements, in units of its imports:
9.7 to 11.9 s of the notebooks on minivlm/small, whose imports took 4.4 s. It hardly depends on the
model."""
NOTEBOOK_DISK = 1e6
"""Bytes of an executed notebook with its page and figures."""
FIGURES_MEMORY = 6e7
"""Bytes that a notebook's process takes for tables, statistics and figures: 09 on minivlm/small."""
NO_MEMORY = ("MemoryError", "OutOfMemoryError", "does not fit into memory")
"""Signs in a note that the pilot itself ran out of memory."""
COPIES = {"trained": 1, "random": 1, "decoder": 2}
"""Copies of the weights that a load holds at its peak; a decoder is drawn beside the model read."""


class DoesNotFit(ValueError):
    """A run needs more memory or disk than is free."""


def estimate(work: Mapping[str, Sequence[Step]], measured: pd.DataFrame) -> pd.DataFrame:
    """Add up what a pilot measured over all that the notebooks do.

    Seconds are ``OVERHEAD`` starts, and for each step ``call_s`` for each block and ``unit_s`` for
    each sample. Memory is the process (on a CPU), the copies of the weights that are held at once,
    and the largest block of any step: ``call_bytes`` and ``unit_bytes`` for each of its samples.
    Disk is that of tables, figures and the executed notebook.

    Args:
        work: Notebook -> steps.
        measured: Of ``pilot``.

    Returns:
        One row per notebook: ``notebook, minutes, memory_gb, disk_mb, note`` (what could not be
        measured and is not counted; what of the time is training).
    """
    known = {(row.kind, row.task, row.options): row for row in measured.itertuples()}
    start = known["start", "", "[]"]
    process = start.unit_bytes and start.unit_bytes + FIGURES_MEMORY
    rows = []
    for name, steps in work.items():
        found = [(step, known[step.kind, step.task, json.dumps(step.options)]) for step in steps]
        notes = sorted({row.note for step, row in found if row.note})
        if lacks := [note for note in notes if note.startswith("MissingTask")]:
            notes = lacks if name != "00_start_here" else []  # which shows what there is
            found = [(s, row) for s, row in found if s.kind == "load" or s.table == "accuracy"]
        found = [(step, row) for step, row in found if not row.note]
        seconds, disk, block = OVERHEAD * start.unit_s, NOTEBOOK_DISK, 0.0
        for step, row in found:
            seconds += step.calls * row.call_s + step.times * step.units * row.unit_s
            disk += step.calls * row.call_disk + step.times * step.units * row.unit_disk
            if step.kind != "load":
                size = min(BLOCKS[step.kind] or 1, step.units)
                block = max(block, row.call_bytes + size * row.unit_bytes)
        notes += _training(found)
        weights = max((row.unit_bytes for step, row in found if step.kind == "load"), default=0)
        rows.append(
            {
                "notebook": name,
                "minutes": seconds / 60,
                "memory_gb": (process + copies(steps) * weights + block) / 1e9,
                "disk_mb": disk / 1e6,
                "note": "; ".join(notes),
            }
        )
    return pd.DataFrame(rows)


def _training(found: list[tuple[Step, Any]]) -> list[str]:
    """What of a notebook's time is training, in words; empty where nothing is trained."""
    steps = [(step, row) for step, row in found if step.kind in ("distill", "targets")]
    number = sum(step.times for step, _ in steps if step.kind == "distill")
    spent = sum(
        step.calls * row.call_s + step.times * step.units * row.unit_s for step, row in steps
    )
    return [f"of it {duration(spent)} to train {number} adapters"] if number else []


def copies(steps: Sequence[Step]) -> int:
    """Copies of the weights that a notebook holds at its peak: its model's and a control's."""
    loads = [COPIES[step.task] for step in steps if step.kind == "load"]
    return loads[0] + max(loads[1:], default=0) if loads else 0


def check(table: pd.DataFrame, memory: float, disk: float, device: str = "cpu") -> None:
    """Refuse what does not fit.

    Args:
        table: Of ``estimate``.
        memory: Bytes free on the device.
        disk: Bytes free where the results go.
        device: Where the model runs.

    Raises:
        DoesNotFit: With the numbers and the mend.
    """
    for row in table.itertuples():
        if any(sign in getattr(row, "note", "") for sign in NO_MEMORY):
            raise DoesNotFit(f"{row.notebook}: {row.note}")
    worst = table.loc[table["memory_gb"].idxmax()]
    if worst["memory_gb"] * 1e9 > memory:
        raise DoesNotFit(
            f"{worst['notebook']} takes {worst['memory_gb']:.1f} GB of memory on {device}, "
            f"{memory / 1e9:.1f} GB are free: DTYPE=bfloat16, a smaller MODEL=, or a larger device"
        )
    if table["disk_mb"].sum() * 1e6 > disk:
        raise DoesNotFit(
            f"the run writes {table['disk_mb'].sum():.0f} MB, {disk / 1e6:.0f} MB are free: "
            "a smaller N=, or another OUT="
        )
