"""Before a long run: about how many minutes, how much memory and disk, by notebook.

What a notebook costs was recorded once, on an embedded model (``data/costs.json``, written by
``python -m tools costs``): a fixed part, in starts of a process, and for each sample so many
answers to its tasks. Here some answers are timed, with the model and on the machine at hand, and
multiplied. ``refuse_early`` knows from the sizes of files what a run takes at least.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from visdepth_utils.claims.c6 import cut_depth
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.common.cells import default_parameters
from visdepth_utils.common.errors import named_line
from visdepth_utils.common.files import REPO, read_object
from visdepth_utils.common.progress import duration, progress_line
from visdepth_utils.data.tasks import EMBEDDED, load_task, missing_tasks
from visdepth_utils.measure.batching import free_bytes, out_of_memory
from visdepth_utils.measure.evaluation import evaluate
from visdepth_utils.measure.recovery import SHIPPED, distill, registered
from visdepth_utils.models.checkpoints import fetched, weight_files
from visdepth_utils.models.load import load_vlm
from visdepth_utils.runs import provenance
from visdepth_utils.runs.records import known_power
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import Settings

if TYPE_CHECKING:
    from visdepth_utils.data.tasks import Task
    from visdepth_utils.models.vlm import VLM

COSTS = REPO / "data" / "costs.json"
COLUMNS = ["notebook", "minutes", "memory_gb", "disk_mb", "note"]
ANSWERS, SLOW_S = 16, 10.0
"""Samples of each task that are answered, a batch of the training; only the first one where it
takes more seconds: one alone costs little more then."""
NOTEBOOK_DISK, PROCESS_MEMORY = 1e6, 5e8
"""Bytes of an executed notebook, and of a process with what a notebook imports, at least."""
START = """import psutil
from visdepth_utils import layer_geometry, load_task, load_vlm, truncation_sweep, verdict
from visdepth_utils.plots.geometry import depth_curves
print(psutil.Process().memory_info().rss)"""
"""What every notebook does first."""


class DoesNotFit(ValueError):
    """A run needs more memory or disk than is free."""


def recorded(notebook: str, profile: str = "quick") -> dict[str, Any]:
    """What a notebook cost when it was recorded; ``note`` says if in profile ``quick`` only.

    ``tasks``; ``starts``: the fixed part of its time, in starts of a process; ``answers`` to each
    task, per sample, which grow with that power (``grows``) of the number of ``layers``; ``copies``
    of the weights at once; ``memory``: bytes beside; ``disk``, ``disk_each``: bytes, per sample.
    """
    kept = read_object(COSTS)
    here, quick = (kept.get(name, {}).get(notebook) for name in (profile, "quick"))
    note = "" if here else "at least this: recorded in profile quick" if quick else "not recorded"
    nothing = dict.fromkeys(("starts", "answers", "grows", "memory", "disk", "disk_each"), 0.0)
    nothing |= {"tasks": [], "copies": 1, "layers": kept["layers"]}
    cost, entry = nothing | (here or quick or {}) | {"note": note}, claim_entry("C6")
    if (notebook, profile) == (entry["notebook"], "full"):  # the only one that then has more tasks
        cost["tasks"] = sorted({*cost["tasks"], *entry["tasks"]["beside"]})
    return cost


def pilot(
    settings: Settings,
    tasks: Iterable[str],
    trained: Iterable[str] = (),
    n: int = ANSWERS,
    clock: Callable[[], float] = time.perf_counter,
) -> pd.DataFrame:
    """Time a process that starts, answers to n samples of tasks, and steps of training on some.

    Returns:
        Columns ``what, value, note`` (why there is no value), of: ``start_s, start_bytes, load_s,
        weights`` (bytes), ``layers``; ``answer TASK``, ``step TASK`` (seconds of one, of a whole
        batch); ``adapter`` (bytes on disk); ``answer_bytes, step_bytes`` (most that this process,
        or the GPU, had held by then).

    Raises:
        DoesNotFit: Not even this fits into memory.
    """
    begin = clock()
    vlm = load_vlm(settings["model"], device=settings["device"], dtype=settings["dtype"])
    loaded, gpu = clock(), vlm.device.type == "cuda"
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    found = {"load_s": loaded - begin, "start_s": clock() - loaded, "layers": vlm.n_layers}
    found["start_bytes"] = 0 if gpu else int(done.stdout.split()[-1])
    found["weights"] = sum(p.numel() * p.element_size() for p in vlm.model.parameters())
    found["answer_bytes"] = _peak_bytes(vlm)
    jobs = [("answer", name) for name in tasks] + [("step", name) for name in trained]
    notes, progress = {}, progress_line()
    for number, (kind, name) in enumerate(jobs, 1):
        try:
            task = load_task(name, n, settings["seed"], settings["source"], vlm=vlm)
            found |= (_answered if kind == "answer" else _trained)(vlm, task, clock)
        except (ValueError, MemoryError, RuntimeError) as error:
            if out_of_memory(error.__cause__ or error):
                raise DoesNotFit(named_line(error)) from error
            found[f"{kind} {name}"], notes[f"{kind} {name}"] = math.nan, named_line(error)
        found[f"{kind}_bytes"] = _peak_bytes(vlm)
        progress(number, len(jobs), f"pilot, {kind} {name}")
    rows = [(what, float(value), notes.get(what, "")) for what, value in found.items()]
    return pd.DataFrame(rows, columns=["what", "value", "note"])


def _answered(vlm: VLM, task: Task, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of an answer among several, after one alone, which counts only where it is slow."""
    for samples in (task.samples[:1], task.samples):
        begin = clock()
        evaluate(vlm, replace(task, samples=samples))
        if (spent := (clock() - begin) / len(samples)) > SLOW_S:
            break
    return {f"answer {task.name}": spent}


def _trained(vlm: VLM, task: Task, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of the second of two steps; the adapter, trained on what is measured, is deleted."""
    entry, stamps, batch = claim_entry("C6"), [], len(task)
    own = {"steps": 2, "validation": 0, "batch": batch}
    settings = registered(entry["distill"], cut_depth(entry, vlm.n_layers), entry["mode"], **own)
    with tempfile.TemporaryDirectory() as folder:
        distill(vlm, task, settings, folder, progress=lambda *_: stamps.append(clock()))
        kept = sum(file.stat().st_size for file in Path(folder).iterdir())
    spent = (stamps[-1] - stamps[-2]) * entry["distill"]["batch"] / batch
    return {f"step {task.name}": spent, "adapter": kept}


def _peak_bytes(vlm: VLM) -> int:
    """Most bytes that were ever held: by tensors on a GPU, else by this process."""
    if vlm.device.type == "cuda":
        return torch.cuda.max_memory_allocated(vlm.device)
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def estimate(
    numbers: Mapping[str, int],
    measured: pd.DataFrame,
    profile: str = "quick",
    trainings: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Multiply what a pilot measured by what the notebooks (name -> samples) cost when recorded.

    ``trainings``: task -> adapters that notebook 06 will train. ``note`` in the table says what is
    not counted, and what of the time is training.
    """
    known = dict(zip(measured["what"], measured["value"], strict=True))
    why = {row.what: row.note for row in measured.itertuples() if row.note}
    entry, rows = claim_entry("C6"), []
    rule = entry["distill"]
    for name, n in numbers.items():
        cost = recorded(name, profile)
        made = {f"step {t}": k for t, k in (trainings or {}).items() if name == entry["notebook"]}
        needs = [x for x in (*(f"answer {task}" for task in cost["tasks"]), *made) if x in known]
        notes = [*filter(None, [cost["note"]]), *sorted({why[x] for x in needs if x in why})]
        made = {step: k for step, k in made.items() if step not in why}
        each = sum(known[x] for x in needs if x not in {*made, *why})  # an answer to each task
        grown = (known["layers"] / cost["layers"]) ** cost["grows"]
        seconds = cost["starts"] * known["start_s"] + cost["copies"] * known["load_s"]
        seconds += n * cost["answers"] * grown * each
        disk = cost["disk"] + n * cost["disk_each"] * grown
        memory = known["answer_bytes"] + (cost["copies"] - 1) * known["weights"]
        if count := sum(made.values()):  # each task's answers are learnt by all of its adapters
            spent = each * (rule["samples"] + rule["validation"])
            spent += sum(k * rule["steps"][0] * known[step] for step, k in made.items())
            notes.append(f"of it {duration(spent)} to train {count} adapters")
            seconds, disk = seconds + spent, disk + count * known["adapter"]
            memory = max(memory, known["step_bytes"])
        memory = memory if cost["tasks"] else known["start_bytes"]
        memory += cost["memory"] if known["start_bytes"] else 0  # tables and figures: on no GPU
        rows.append((name, seconds / 60, memory / 1e9, disk / 1e6, "; ".join(notes)))
    return pd.DataFrame(rows, columns=COLUMNS)


def check(table: pd.DataFrame, device: str, folder: Path) -> str:
    """Refuse what does not fit (``DoesNotFit``, with the numbers and a mend); else what is free."""
    while not os.path.exists(folder):  # a name too long or unlawful is said where it is written
        folder = folder.parent
    memory, disk = free_bytes(torch.device(device)) / 1e9, shutil.disk_usage(folder).free / 1e9
    worst, written = table.loc[table["memory_gb"].idxmax()], table["disk_mb"].sum()
    if worst["memory_gb"] > memory:
        raise DoesNotFit(
            f"{worst['notebook']} takes {worst['memory_gb']:.1f} GB of memory on {device}, "
            f"{memory:.1f} GB are free: DTYPE=bfloat16, a smaller MODEL=, or a larger device"
        )
    if written > 1e3 * disk:
        raise DoesNotFit(
            f"the run writes {written:.0f} MB, {1e3 * disk:.0f} MB are free: "
            "a smaller N=, or another OUT="
        )
    return f"it fits: {memory:.1f} GB of memory and {disk:.1f} GB of disk are free"


def refuse_early(run: Run, sources: Sequence[Path]) -> None:
    """Refuse what cannot fit, from the sizes of files alone, in milliseconds: ``DoesNotFit``.

    Weights that were not fetched yet pass.
    """
    most, name = _copies(sources), f"{run.settings['model']} with its untrained controls"
    # For another device a model is first read in main memory, and a decoder drawn beside it.
    for where, held in {run.device: most, "cpu": most if run.device == "cpu" else 2}.items():
        memory = held * weights_bytes(run) + (PROCESS_MEMORY if where == "cpu" else 0)
        row = (name, 0.0, memory / 1e9, len(sources) * NOTEBOOK_DISK / 1e6, "")
        check(pd.DataFrame([row], columns=COLUMNS), where, run.folder)


def _copies(sources: Iterable[Path]) -> int:
    """Most copies of the weights that a notebook holds at once, those of a control among them."""
    return max((recorded(source.stem)["copies"] for source in sources), default=0)


def weights_bytes(run: Run) -> int:
    """In memory, from the headers of the files that are read; 0 before they are fetched."""
    where, dtype = fetched(run.settings["model"]), run.settings["dtype"]
    if dtype == "auto":
        dtype = "float32" if run.device == "cpu" else ""  # elsewhere as in the file
    size, total = torch.finfo(getattr(torch, dtype)).bits // 8 if dtype else 0, 0
    for file in weight_files(where) if where else ():
        with file.open("rb") as handle:
            header = json.loads(handle.read(*struct.unpack("<Q", handle.read(8))))
        for entry in (part for name, part in header.items() if name != "__metadata__"):
            cast = size and entry["dtype"].startswith(("F", "BF"))
            start, end = entry["data_offsets"]
            total += math.prod(entry["shape"]) * size if cast else end - start
    return total


def dry_run(run: Run, sources: Sequence[Path], say: Callable[[str], None] = print) -> int:
    """Print what notebooks will take, by a pilot that is measured now or kept; 1 if too much."""
    if not sources:
        say("all notebooks are finished: nothing will be run")
        return 0
    try:
        refuse_early(run, sources)
        table = _expected(run, sources, say)
        say(_text(run, table))
        say(check(table, run.device, run.folder))
    except DoesNotFit as error:
        say(f"does not fit: {error}")
        return 1
    for line in known_power(run.folder.parent, run.settings["model"], run.settings["n_samples"]):
        say(line)
    return 0


def needs_text(run: Run, folder: Path = REPO / "notebooks") -> str:
    """What is known of a run's needs without measuring: for notebook 00.

    The table of ``dry_run``, if its pilot is kept in this run's folder; else what is needed at
    least, and how to have the rest measured.
    """
    sources = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    try:
        return _text(run, _expected(run, sources, measure=False))
    except LookupError:
        most, facts = _copies(sources), {"weights": "not known before they are fetched"}
    if weights := weights_bytes(run):
        held = most * weights + (0 if run.device.startswith("cuda") else PROCESS_MEMORY)
        several = f"{most} copies of the weights, with those of the controls"
        facts = {"weights": f"{weights / 1e9:.2f} GB"}
        facts["memory, at least"] = f"{held / 1e9:.2f} GB: {several}"
    facts["disk, without tables"] = f"{len(sources) * NOTEBOOK_DISK / 1e6:.0f} MB"
    facts["minutes"] = "not measured yet: make reproduce DRY=1"
    return "\n".join(f"{name:<22}{value}" for name, value in facts.items())


def _expected(
    run: Run,
    sources: Sequence[Path],
    say: Callable[[str], None] = lambda line: None,
    measure: bool = True,
) -> pd.DataFrame:
    """The table of ``estimate``, by a pilot that is kept beside the run's tables (LookupError)."""
    settings, profile = run.settings, run.settings["profile"]
    chosen = None if settings["n_samples"] == run.default_n else settings["n_samples"]
    numbers = {s.stem: chosen or default_parameters(s).get("n_samples") or 0 for s in sources}
    made = _trainings(run) if claim_entry("C6")["notebook"] in numbers else {}
    lacking = missing_tasks(EMBEDDED, settings["source"]) if settings["source"] else {}
    tasks = [task for task in EMBEDDED if task not in lacking]

    def measured() -> pd.DataFrame:
        if not measure:
            raise LookupError("no pilot")
        return pilot(settings, tasks, made, n)

    n, code = min(chosen or ANSWERS, ANSWERS), hashlib.sha256(Path(__file__).read_bytes())
    key = {"n": n, "tasks": tasks, "trained": [*made], "code": code.hexdigest()}
    # A notebook's run has its default n_samples where that of the command has None.
    alike = replace(run, settings={**settings, "n_samples": None})
    table = alike.table("preflight", measured, key | {"machine": provenance.machine()}, say)
    return estimate(numbers, table, profile, made)


def _trainings(run: Run) -> dict[str, int]:
    """Task -> adapters that notebook 06 will train: none where some of the model are shipped."""
    entry, full = claim_entry("C6"), run.settings["profile"] == "full"
    weights = provenance.model_identity(run.settings["model"])["weights_hash"]
    shipped = (read_object(file)["weights"] for file in SHIPPED.glob("*/*/distillation.json"))
    if (run.settings["source"], run.settings["seed"]) == (None, 0) and weights in shipped:
        return {}
    names = [entry["tasks"]["recovers"], entry["tasks"]["does not"]]
    names += entry["tasks"]["beside"] if full else []
    # With own and with other pictures at each rate, at one cut or two; and the whole model once.
    most = 2 * len(entry["distill"]["rates"]) * (1 + full) + 1
    done = {x: [*(run.folder / "adapters").glob(f"{x}-d*/adapter_model.*")] for x in names}
    return {name: most - len(done[name]) for name in names if len(done[name]) < most}


def _text(run: Run, table: pd.DataFrame) -> str:
    """The table in words, with its totals, and what its numbers are."""
    where = "memory of the GPU" if run.device.startswith("cuda") else "memory of one process"
    total = ("all", table["minutes"].sum(), table["memory_gb"].max(), table["disk_mb"].sum(), "")
    lines = [
        f"about, one after the other: {run.settings['model']}, {where}; from answers timed here",
        f"and how many answers the notebooks were worth on {read_object(COSTS)['model']}",
        f"{'':<34}{'time':>12}{'memory':>10}{'disk':>10}",
    ]
    for name, minutes, memory, disk, note in [*table.itertuples(index=False), total]:
        numbers = f"{duration(60 * minutes):>12}{memory:>7.2f} GB{disk:>7.1f} MB"
        lines.append(f"{name:<34}{numbers}  {note}".rstrip())
    return "\n".join(lines)
