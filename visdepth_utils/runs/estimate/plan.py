"""Before a long run: what each notebook will take, and a refusal in numbers where it does not fit.

``dry_run`` measures a pilot and prints the table; ``needs_text`` is what notebook 00 shows.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from visdepth_utils.common.cells import default_parameters
from visdepth_utils.common.files import REPO
from visdepth_utils.common.progress import duration, progress_line
from visdepth_utils.measure.adapters import SHIPPED
from visdepth_utils.models.checkpoints import locate
from visdepth_utils.models.reading import read_config
from visdepth_utils.runs import provenance
from visdepth_utils.runs.estimate.estimates import NOTEBOOK_DISK, DoesNotFit, check, estimate
from visdepth_utils.runs.estimate.footprint import (
    PROCESS_MEMORY,
    at_least,
    free_disk,
    free_memory,
    refuse_early,
)
from visdepth_utils.runs.estimate.steps import steps_of
from visdepth_utils.runs.estimate.workload import Size, Step
from visdepth_utils.runs.run import Run

__all__ = ["NotMeasured", "dry_run", "expected", "needs_text"]

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
    return 0


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
            copies = f"{most} copies of the weights, with those of the controls"
            facts["memory, at least"] = f"{held / 1e9:.2f} GB: {copies}"
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

    own = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("pilot", "probes")]
    key = {
        "n": n,
        "probes": json.dumps(probes),
        "machine": provenance.machine(),
        "code": hashlib.sha256(b"".join(own)).hexdigest(),
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
            found.add(file.parent.name)
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
