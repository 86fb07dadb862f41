"""What each notebook costs, in answers of the model: recorded in data/costs.json, or compared.

Notebooks are run one by one, in seconds of a processor and with one thread: where other work shares
the machine, those of the wall say nothing. Those of a processor too become more then (1.2 to 1.4
times as many with four processes for each core), so a pilot behind each notebook gives its unit.
"""

import contextlib
import io
import json
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from scipy.optimize import nnls

from visdepth_utils.claims.registry import load_claims
from visdepth_utils.common.cells import default_parameters
from visdepth_utils.common.files import REPO, read_object, write_text
from visdepth_utils.data.tasks import EMBEDDED
from visdepth_utils.models.checkpoints import model_name
from visdepth_utils.notebooks.reproduce import ordered_notebooks, reproduce
from visdepth_utils.runs import estimate, provenance
from visdepth_utils.runs.settings import DEFAULTS

WORK = REPO / "build" / "costs"
NUMBERS: dict[str, tuple[int, int | None]] = {"quick": (8, None), "full": (2, 8)}
"""Profile -> samples of two runs, through which a line is drawn; None: each notebook's own."""
GROWS = {"truncation_sweep": 1, "reasoning_sweep": 1, "depth_rule": 1, "substitution_grid": 2}
"""What a claim's entry may set -> power of the number of layers with which its answers grow: it is
measured at every depth, or for every pair of layers."""
COPIES = {True: 1, "decoder": 2}
"""What of a control is drawn anew -> copies of the weights that it holds; a decoder is drawn beside
a model that is read."""


def record(model: str, profile: str = "quick", only: tuple[str, ...] = ("",)) -> Path:
    """Run notebooks at two numbers of samples and write down what they cost.

    Args:
        model: Folder of an embedded model, for which all adapters are there.
        profile: Of the runs.
        only: Beginnings of names; entries of other notebooks and profiles stay as they are.

    Returns:
        data/costs.json. Its ``steps``, names of the tables that were measured, tell a notebook that
        has got another one since.
    """
    kept = read_object(estimate.COSTS) if estimate.COSTS.exists() else {}
    kept |= {
        "model": model_name(model),
        "machine": provenance.machine(),
        "date": time.strftime("%F"),
    }
    if "quick" not in kept:  # notebook 00 reads it
        write_text(estimate.COSTS, json.dumps(kept | {"layers": 1, "quick": {}}))
    (first, few), (second, many) = (run_all(model, profile, n, only) for n in NUMBERS[profile])
    kept["layers"] = int(first["layers"])
    for name, high in many.iterrows():
        claims = [one for one in load_claims()["claims"].values() if one["notebook"] == name]
        copies = 1 + max(map(_copies, claims), default=0)
        runs = [few.loc[name], high]
        parts = [(r["pilot"]["start_s"], r["n"] * _each(r)) for r in runs]
        spent = [r["seconds"] - copies * r["pilot"]["load_s"] for r in runs]
        (starts, answers), _ = nnls(parts, spent)
        (disk, disk_each), _ = nnls([(1, r["n"]) for r in runs], [r["disk"] for r in runs])
        held = second["answer_bytes"] + (copies - 1) * second["weights"]
        beside = high["memory"] - (held if high["tasks"] else second["start_bytes"])
        kept.setdefault(profile, {})[name] = {
            "tasks": high["tasks"],
            "starts": round(starts, 2),
            "answers": round(answers, 2),
            "grows": max((GROWS.get(key, 0) for claim in claims for key in claim), default=0),
            "copies": copies,
            "memory": max(round(beside, -6), 0.0),
            "disk": round(disk, -3),
            "disk_each": round(disk_each),
        }
    kept[profile] = dict(sorted(kept[profile].items()))
    files = WORK.glob(f"{Path(model).name}-{profile}-n*/tables/*.parquet")
    steps = {file.name.rpartition("-")[0] for file in files} - {"preflight"}
    kept["steps"] = sorted(steps | {*kept.get("steps", ())})
    write_text(estimate.COSTS, json.dumps(kept, indent=1) + "\n")
    return estimate.COSTS


def _each(run: pd.Series) -> float:
    """Seconds of an answer to each task of a notebook, right behind it."""
    return sum(run["pilot"][f"answer {task}"] for task in run["tasks"])


def _copies(claim: dict[str, Any]) -> int:
    """Of the weights, that the largest of a claim's controls holds."""
    loads = [one.get("load") for one in claim["controls"].values() if isinstance(one, dict)]
    return max((COPIES[load["random_init"]] for load in loads if load), default=0)


def compare(
    model: str, profile: str = "quick", only: tuple[str, ...] = ("",), n: int | None = None
) -> pd.DataFrame:
    """What is expected of notebooks, and what they then take.

    Args:
        model: Folder.
        profile: Of the run.
        only: Beginnings of names.
        n: Samples; None for each notebook's own number.

    Returns:
        By notebook: seconds, gigabytes and megabytes expected and taken, ``ratio`` and
        ``ratio_gb`` (expected over taken).
    """
    first, took = run_all(model, profile, n, only)
    told = pd.concat(
        estimate.estimate({run.Index: run.n}, _frame(first | run.pilot), profile)
        for run in took.itertuples()
    ).set_index("notebook")
    told = told.assign(seconds=60 * told["minutes"])
    table = pd.DataFrame(
        {
            **{"expected_s": told["seconds"], "took_s": took["seconds"].astype(float)},
            **{"expected_gb": told["memory_gb"], "took_gb": took["memory"].astype(float) / 1e9},
            **{"expected_mb": told["disk_mb"], "took_mb": took["disk"].astype(float) / 1e6},
        }
    )
    total = table.sum()
    total[["expected_gb", "took_gb"]] = table[["expected_gb", "took_gb"]].max()
    table.loc["all"] = total
    ratios = {"ratio": table["expected_s"] / table["took_s"]}
    return table.assign(**ratios, ratio_gb=table["expected_gb"] / table["took_gb"]).round(2)


def run_all(
    model: str, profile: str, n: int | None, only: tuple[str, ...]
) -> tuple[dict[str, float], pd.DataFrame]:
    """Run notebooks one by one, below build/costs; what was finished there is not run again.

    Args:
        model: Folder.
        profile: Of the run.
        n: Samples; None for each notebook's own number.
        only: Beginnings of names.

    Returns:
        What a pilot measured before the first; by notebook ``n, seconds, memory, disk`` (bytes),
        ``tasks`` and ``pilot``: seconds that one measured right behind it. All of a processor.

    Raises:
        RuntimeError: One broke, or more than one thread is used.
    """
    if torch.get_num_threads() != 1:
        raise RuntimeError("seconds of a processor are compared: set OMP_NUM_THREADS=1")
    out = WORK / f"{Path(model).name}-{profile}-n{n}"
    notes = out / "costs.json"
    done: dict[str, Any] = read_object(notes) if notes.exists() else {}
    if not done:
        done["pilot"] = _pilot(model, sorted(EMBEDDED))
    chosen = {"model": model, "profile": profile, "device": "cpu"} | ({"n_samples": n} if n else {})
    for source in ordered_notebooks(REPO / "notebooks"):
        if not source.name.startswith(only) or source.stem in done:
            continue
        began, size, used = time.time(), _size(out), _used(children=True)
        with tempfile.TemporaryDirectory() as folder, _watch() as peak:
            shutil.copy(source, folder)
            if reproduce(chosen, out, Path(folder), io.StringIO(), jobs=1):
                raise RuntimeError(f"{source.stem} broke on {model}: see {out / 'report.html'}")
        files = [f for f in (out / "selection").glob("*.json") if f.stat().st_mtime >= began]
        made = done[source.stem] = {
            "n": n or default_parameters(source).get("n_samples") or 0,
            "seconds": _used(children=True) - used,
            "memory": max(peak),
            "disk": _size(out) - size,
            "tasks": sorted({file.name.partition("-")[0] for file in files}),
        }
        pilot = _pilot(model, made["tasks"])  # its bytes are those of all that this process did
        made["pilot"] = {what: s for what, s in pilot.items() if what.startswith("answer ")}
        made["pilot"] |= {what: pilot[what] for what in ("start_s", "load_s")}
        write_text(notes, json.dumps(done, indent=1))
        print(out.name, source.stem, made, flush=True)
    table = pd.DataFrame({k: v for k, v in done.items() if k.startswith(only) and k != "pilot"})
    return done["pilot"], table.T


def _pilot(model: str, tasks: list[str]) -> dict[str, float]:
    """``estimate.pilot`` in seconds of a processor."""
    settings = {**DEFAULTS, "model": model, "device": "cpu"}
    pilot = estimate.pilot(settings, tasks, clock=_used)
    return dict(zip(pilot["what"], pilot["value"], strict=True))


def _frame(pilot: dict[str, float]) -> pd.DataFrame:
    """As ``estimate.pilot`` returns it."""
    return pd.DataFrame({"what": list(pilot), "value": list(pilot.values()), "note": ""})


def _used(children: bool = False) -> float:
    """Seconds of a processor: of children that have ended, and of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + (0 if children else time.process_time())


@contextlib.contextmanager
def _watch() -> Iterator[list[int]]:
    """Bytes that any one child process holds, ten times a second."""
    seen, own, done = [0], psutil.Process(), threading.Event()

    def look() -> None:
        while not done.wait(0.1):
            for child in own.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    seen.append(child.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _size(folder: Path) -> int:
    """Bytes of all files below, without the report, which is made anew for each notebook."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "report.html"]
    return sum(file.stat().st_size for file in files)
