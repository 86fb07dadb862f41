"""Memory and disk: what is free, what something takes, and what a run takes at least."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import shutil
import struct
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import psutil
import torch

from visdepth_utils.measure.batching import free_bytes
from visdepth_utils.models.checkpoints import fetched, weight_files
from visdepth_utils.runs.estimate.estimates import COPIES, NOTEBOOK_DISK, check, copies
from visdepth_utils.runs.estimate.steps import NOTEBOOKS, steps_of
from visdepth_utils.runs.estimate.workload import Size
from visdepth_utils.runs.run import Run

__all__ = [
    "PROCESS_MEMORY",
    "Peak",
    "at_least",
    "free_disk",
    "free_memory",
    "held_memory",
    "refuse_early",
    "weights_bytes",
]

PROCESS_MEMORY = 5e8
"""Bytes of a process that has imported what a notebook imports; measured on a CPU."""


def refuse_early(run: Run, sources: Sequence[Path]) -> None:
    """Refuse a run that cannot fit, from the sizes of files alone, in milliseconds.

    Args:
        run: Its folder and settings.
        sources: The notebooks.

    Raises:
        ValueError: With the numbers and the mend. Weights that were not fetched yet pass.
    """
    model, device = run.settings["model"], run.device
    names = [source.stem for source in sources]
    weights, most = at_least(model, run.settings["dtype"], device, names)
    needs = {device: most * (weights or 0)}
    # Elsewhere models are read and drawn in main memory first, one at a time.
    needs["cpu"] = PROCESS_MEMORY + (most if device == "cpu" else max(COPIES.values())) * (
        weights or 0
    )
    for where, need in needs.items():
        row = {
            "notebook": f"{model} with its untrained controls",
            "memory_gb": need / 1e9,
            "disk_mb": len(sources) * NOTEBOOK_DISK / 1e6,
        }
        check(pd.DataFrame([row]), free_memory(where), free_disk(run.folder), where)


def at_least(
    model: str, dtype: str, device: str, notebooks: Iterable[str] = tuple(NOTEBOOKS)
) -> tuple[int | None, int]:
    """Weights in memory, and how many copies of them the notebooks hold at once.

    Args:
        model: As in the settings, as the two below.
        dtype: Of the weights.
        device: Where the model runs.
        notebooks: Names without ending.

    Returns:
        Bytes, None if the weights were not fetched yet; copies, those of a control among them.
    """
    most = max((copies(steps_of(name, Size(1))) for name in notebooks), default=0)
    where = fetched(model)
    return (weights_bytes(where, dtype, device) if where else None), most


def weights_bytes(folder: Path, dtype: str, device: str) -> int:
    """Memory that a checkpoint's weights take, from the headers of the files that are read.

    Args:
        folder: Of the checkpoint.
        dtype: As in the settings; ``auto`` is float32 on a CPU and that of the file elsewhere.
        device: Where the model runs.

    Returns:
        Bytes. Numbers that are not floating-point take what they take in the file.
    """
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else ""
    size = torch.finfo(getattr(torch, dtype)).bits // 8 if dtype else None
    total = 0
    for file in weight_files(folder):
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            floating = entry["dtype"].startswith(("F", "BF"))
            total += math.prod(entry["shape"]) * size if floating and size else end - start
    return total


def free_memory(device: str) -> int:
    """Bytes that are free on the device; for a CPU those of the machine."""
    return free_bytes(torch.device(device if device.startswith("cuda") else "cpu"))


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be made."""
    while not os.path.exists(folder):  # a name too long or unlawful is said where it is written
        folder = folder.parent
    return shutil.disk_usage(folder).free


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
        growth: Largest bytes above that; valid behind the block.
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
