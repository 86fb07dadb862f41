"""Before a long run: what each notebook will take, and a refusal in numbers where it does not fit.

``estimate`` adds up what a pilot measured; ``refuse_early`` knows from the sizes of files what a
run takes at least; ``dry_run`` measures a pilot and prints the table; ``needs_text`` is what
notebook 00 shows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from visdepth_utils.claims.power import power_text
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.common.cells import default_parameters
from visdepth_utils.common.files import REPO
from visdepth_utils.common.progress import duration, progress_line
from visdepth_utils.measure.batching import free_bytes
from visdepth_utils.measure.recovery import SHIPPED
from visdepth_utils.models.checkpoints import fetched, locate, weight_files
from visdepth_utils.models.reading import read_config
from visdepth_utils.runs import provenance
from visdepth_utils.runs.estimate.steps import BLOCKS, NOTEBOOKS, Size, Step, steps_of
from visdepth_utils.runs.run import Run

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


PILOT_SAMPLES = 16


class NotMeasured(Exception):
    """No pilot is kept in the run's folder."""


def dry_run(
    run: Run,
    sources: Sequence[Path],
    n_samples: int | None,
    finished: Iterable[str] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Measure a pilot, or read back the one of this run, and print what the run will take.

    Args:
        run: Its folder and settings.
        sources: The notebooks.
        n_samples: What the user chose; None for each notebook's own.
        finished: Notebooks that will not be run again; they are left out.
        say: Called with each line.

    Returns:
        0 if all fits, else 1.
    """
    sources = [source for source in sources if source.stem not in set(finished)]
    if not sources:
        say("all notebooks are finished: nothing will be run")
        return 0
    try:
        refuse_early(run, sources)
        table = expected(run, sources, n_samples, say=say)
        say(_text(table, f"{run.settings['model']}, {_where(run)}, from a measured pilot"))
        check(table, free_memory(run.device), free_disk(run.folder), run.device)
    except DoesNotFit as error:
        say(f"does not fit: {error}")
        return 1
    memory, disk = free_memory(run.device) / 1e9, free_disk(run.folder) / 1e9
    say(f"it fits: {memory:.1f} GB of memory and {disk:.1f} GB of disk are free")
    for line in known_power(run, n_samples):
        say(line)
    return 0


def known_power(run: Run, n_samples: int | None) -> list[str]:
    """What ``make power`` found on this model, at as many images as are asked for.

    Args:
        run: Its folder and settings; finished runs lie beside it.
        n_samples: What the user chose; None for each claim's own.

    Returns:
        A line per claim, e.g. "C7 at 96 images: 30% power; 270 images for 80%, 340 images for 90%".
    """
    lines = {}
    for file in sorted(run.folder.parent.glob("*/power-*.json")):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["model"] == run.settings["model"]:
            n = n_samples or claim_entry(kept["claim"])["n_images"]
            lines[kept["claim"]] = power_text(kept["claim"], pd.DataFrame(kept["curve"]), n)
    return list(lines.values())


def needs_text(run: Run, folder: Path = REPO / "notebooks") -> str:
    """What is known of a run's needs without measuring: for notebook 00.

    Args:
        run: Opened by a notebook.
        folder: Of the notebooks.

    Returns:
        The table of ``dry_run``, if its pilot is kept in this run's folder; else weights, memory
        and disk that are needed at least, and how to have the rest measured.
    """
    sources = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    n = run.settings["n_samples"]
    chosen = None if n == run.default_n else n
    try:
        table = expected(run, sources, chosen, measure=False, say=lambda line: None)
    except NotMeasured:
        weights, most = at_least(run.settings["model"], run.settings["dtype"], run.device)
        size = "not known before they are fetched" if weights is None else f"{weights / 1e9:.2f} GB"
        facts = {"weights": size}
        if weights is not None:
            held = most * weights + (0 if run.device.startswith("cuda") else PROCESS_MEMORY)
            several = f"{most} copies of the weights, with those of the controls"
            facts["memory, at least"] = f"{held / 1e9:.2f} GB: {several}"
        facts["disk, without tables"] = f"{len(sources) * NOTEBOOK_DISK / 1e6:.0f} MB"
        facts["minutes"] = "not measured yet: make reproduce DRY=1"
        return "\n".join(f"{name:<22}{value}" for name, value in facts.items())
    return _text(table, f"{_where(run)}, from a measured pilot")


def expected(
    run: Run,
    sources: Sequence[Path],
    n_samples: int | None,
    *,
    measure: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """What each notebook will take, from the pilot of this run.

    The pilot is measured once on a machine and kept beside the tables of the run.

    Args:
        run: Its folder and settings.
        sources: The notebooks.
        n_samples: What the user chose; None for each notebook's own.
        measure: Whether it may be measured now.
        clock: Seconds, for the pilot.
        say: Called with one line: measured, or from cache.

    Returns:
        The table of ``estimate``.

    Raises:
        NotMeasured: There is no pilot, and none may be measured.
    """
    work, settings = _work(run, sources, n_samples), run.settings
    n = min(n_samples or PILOT_SAMPLES, PILOT_SAMPLES)
    probes = sorted({step.probe for part in work.values() for step in part}, key=_cheap_first)

    def measured() -> pd.DataFrame:
        if not measure:
            raise NotMeasured
        from visdepth_utils import load_vlm
        from visdepth_utils.runs.estimate.pilot import pilot

        start = clock()
        vlm = load_vlm(settings["model"], device=settings["device"], dtype=settings["dtype"])
        spent = clock() - start
        options = {"seed": settings["seed"], "source": settings["source"], "load_s": spent}
        return pilot(vlm, probes, n=n, clock=clock, progress=progress_line(), **options)

    own = Path(__file__).with_name("pilot.py").read_bytes()
    key = {
        "n": n,
        "probes": json.dumps(probes),
        "machine": provenance.machine(),
        "code": hashlib.sha256(own).hexdigest(),
    }
    # A notebook's run has its default n_samples where that of the command has None.
    alike = replace(run, settings={**settings, "n_samples": None})
    return estimate(work, alike.table("preflight", measured, key, say))


def _cheap_first(probe: tuple[str, str, Any]) -> tuple[bool, Any]:
    """Short answers first: what happens only once is then paid, and left out, on a cheap one."""
    kind, task, options = probe
    return task.startswith(("caption", "reason")), (kind, task, options)


def _work(run: Run, sources: Sequence[Path], n_samples: int | None) -> dict[str, list[Step]]:
    """Notebook -> steps, at the user's number of samples or the notebook's own."""
    settings = run.settings
    config = read_config(settings["model"], locate(settings["model"])).get_text_config()
    have = _adapters(run)
    full, layers = settings["profile"] == "full", config.num_hidden_layers
    work: dict[str, list[Step]] = {}
    kept: dict[str, float] = {}  # samples whose tables an earlier notebook of the run leaves
    for source in sources:
        n = n_samples or default_parameters(source).get("n_samples") or 1
        steps = steps_of(source.stem, Size(n, full, layers, have))
        work[source.stem] = [
            replace(step, units=max(0, step.units - kept.get(step.table, 0))) for step in steps
        ]
        kept |= {step.table: step.units for step in steps if step.table}
    return work


def _adapters(run: Run) -> frozenset[str]:
    """Names of the adapters that this run will find: shipped for this model, or trained before."""
    settings = run.settings
    weights = provenance.model_identity(settings["model"])["weights_hash"]
    found = set()
    for file in SHIPPED.glob("*/*/distillation.json"):
        # Shipped ones were trained on samples of the generator, drawn by seed 0.
        ours = json.loads(file.read_text(encoding="utf-8"))["weights"] == weights
        if ours and settings["source"] is None and settings["seed"] == 0:
            found.add(re.sub("-[0-9a-f]{8}$", "", file.parent.name))
    for file in (run.folder / "adapters").glob("*/adapter_model.safetensors"):
        found.add(file.parent.name.rpartition("-")[0])
    return frozenset(found)


def _where(run: Run) -> str:
    """Device and what of it is counted."""
    return "memory of the GPU" if run.device.startswith("cuda") else "memory of one process"


def _text(table: pd.DataFrame, title: str) -> str:
    """The table in words, with its totals."""
    total = {
        "notebook": "all",
        "minutes": table["minutes"].sum(),
        "memory_gb": table["memory_gb"].max(),
        "disk_mb": table["disk_mb"].sum(),
        "note": "",
    }
    lines = [
        f"expected, one after the other: {title}",
        f"{'':<34}{'time':>12}{'memory':>10}{'disk':>10}",
    ]
    for row in [*table.to_dict("records"), total]:
        spent = duration(60 * row["minutes"])
        numbers = f"{spent:>12}{row['memory_gb']:>7.2f} GB{row['disk_mb']:>7.1f} MB"
        lines.append(f"{row['notebook']:<34}{numbers}  {row['note']}".rstrip())
    return "\n".join(lines)
