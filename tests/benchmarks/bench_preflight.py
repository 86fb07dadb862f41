"""The preflight against the truth: what it expects of each notebook, and what that then took.

Run ``python tests/benchmarks/bench_preflight.py`` for the embedded models, all notebooks (about
ten minutes each on two idle cores); ``--only 01 03`` for some. For each model the pilot is measured
in a fresh folder and the notebooks are run right behind it, on the same machine with the same
threads. Goal: the total, and each notebook that takes more than 20 s, within a factor of 1.5, and
memory as well, of every notebook.

Where other work shares the machine, walls say nothing: ``--cpu-time`` counts the seconds of a
processor on both sides instead, and needs OMP_NUM_THREADS=1, so that a processor's second is one of
the wall on an idle machine. Waiting is then left out on both sides.
"""

import argparse
import io
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import torch

from visdepth_utils.common.files import REPO
from visdepth_utils.measure import timing
from visdepth_utils.notebooks.reproduce import ordered_notebooks, reproduce
from visdepth_utils.runs.estimate import plan
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import check_settings

MODELS = ("data/minivlm/base", "data/minivlm/small")
FACTOR, COUNTS_FROM_S = 1.5, 20.0


class Watch(threading.Thread):
    """Largest resident memory of any one child process while notebooks run."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.1):
            for child in own.children(recursive=True):
                try:
                    self.peak = max(self.peak, child.memory_info().rss)
                except psutil.Error:
                    continue


def processor_seconds() -> float:
    """Of this process and of all its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def run_one(model: str, source: Path, out: Path, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds and gigabytes of one notebook."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(source, folder)
        watch = Watch()
        watch.start()
        start = clock()
        status = reproduce({"model": model}, out, Path(folder), io.StringIO())
        spent = clock() - start
        watch.done.set()
    if status:
        raise RuntimeError(f"{source.stem} broke on {model}")
    return spent, watch.peak / 1e9


def compared(model: str, sources: list[Path], clock: Callable[[], float]) -> pd.DataFrame:
    """Estimate, truth and ratio per notebook."""
    defaults = {"source": None, "n_samples": None, "seed": 0, "device": "auto", "dtype": "auto"}
    settings = check_settings(**{**defaults, "model": model, "profile": "quick"})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", settings)
        start, load = time.perf_counter(), os.getloadavg()[0]
        told = plan.expected(run, sources, None, clock=clock).set_index("notebook")
        spent = time.perf_counter() - start
        print(f"{model}: pilot in {spent:.0f} s of the wall, load average {load:.1f}", flush=True)
        rows = {}
        for source in sources:
            seconds, held = run_one(model, source, run.folder, clock)
            expected_s = 60 * told.loc[source.stem, "minutes"]
            rows[source.stem] = {
                "expected_s": expected_s,
                "took_s": seconds,
                "expected_gb": told.loc[source.stem, "memory_gb"],
                "took_gb": held,
            }
            print(f"  {source.stem:<34} {expected_s:6.1f} {seconds:6.1f}", flush=True)
        files = [file for file in run.folder.rglob("*") if file.is_file()]
        disk = sum(file.stat().st_size for file in files) / 1e6
        print(f"{model}: disk expected {told['disk_mb'].sum():.1f} MB, took {disk:.1f} MB")
    found = pd.DataFrame(rows).T
    total = found.sum()
    total[["expected_gb", "took_gb"]] = found[["expected_gb", "took_gb"]].max()
    found.loc["all"] = total
    found.insert(2, "ratio", found["expected_s"] / found["took_s"])
    found["ratio_gb"] = found["expected_gb"] / found["took_gb"]
    return found


def main() -> int:
    """Print the tables; 1 if one of them misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--only", nargs="*", default=[""], help="numbers of notebooks")
    parser.add_argument("--cpu-time", action="store_true", help="for a machine that is shared")
    args = parser.parse_args()
    clock, unit = time.perf_counter, "seconds of the wall"
    if args.cpu_time:
        if torch.get_num_threads() != 1:
            parser.error("--cpu-time compares one thread: set OMP_NUM_THREADS=1")
        clock, unit = processor_seconds, "seconds of a processor"
        timing._now = lambda device: time.process_time()  # the pilot's runs of a decoder too
    sources = [
        source
        for source in ordered_notebooks(REPO / "notebooks")
        if source.name.startswith(tuple(args.only))
    ]
    missed = 0
    for model in args.models:
        found = compared(model, sources, clock)
        counts = found[found["took_s"] > COUNTS_FROM_S]
        outside = [
            f"{name} ({what})"
            for what, rows, ratio in (("time", counts, "ratio"), ("memory", found, "ratio_gb"))
            for name in rows.index[~rows[ratio].between(1 / FACTOR, FACTOR)]
        ]
        missed += len(outside)
        threads = torch.get_num_threads()
        print(f"\n{model}, {threads} threads, {unit}; both sides saw the same machine")
        print(found.round(2).to_string())
        names = ", ".join(outside) or "none"
        print(f"outside of a factor {FACTOR}: {names}\n", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
