"""The preflight against the truth: what it expects of each notebook, and what that then took.

Run ``python tests/benchmarks/bench_preflight.py`` for the embedded models, all notebooks (about
twenty minutes each on one thread); ``--only 01 03`` for some. For each model the pilot is measured
in a fresh folder and the notebooks are run right behind it, on the same machine with the same
threads. Goal: the total, and each notebook that takes more than 20 s, within a factor of 1.5. Other
work on the machine between the two sides shows as the load average.
"""

import argparse
import io
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import torch

from visdepth_utils import preflight
from visdepth_utils.checkpoints import REPO
from visdepth_utils.reproduce import ordered_notebooks, reproduce
from visdepth_utils.runs import Run, read_provenance
from visdepth_utils.settings import check_settings

MODELS = ("data/minivlm/base", "data/minivlm/small")
FACTOR, COUNTS_FROM_S = 1.5, 20.0


class Watch(threading.Thread):
    """Largest resident memory of any one child process, second by second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, int]] = []
        self.done = threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.1):
            held = [0]
            for child in own.children(recursive=True):
                try:
                    held.append(child.memory_info().rss)
                except psutil.Error:
                    continue
            self.seen.append((time.time(), max(held)))

    def peak(self, start: float, end: float) -> int:
        return max((held for when, held in self.seen if start <= when <= end), default=0)


def compared(model: str, notebooks: Path) -> pd.DataFrame:
    """Estimate, truth and ratio per notebook."""
    defaults = {"source": None, "n_samples": None, "seed": 0, "device": "auto", "dtype": "auto"}
    settings = check_settings(**{**defaults, "model": model, "profile": "quick"})
    sources = ordered_notebooks(notebooks)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", settings)
        start, load = time.perf_counter(), os.getloadavg()[0]
        told = preflight.expected(run, sources, None).set_index("notebook")
        spent = time.perf_counter() - start
        print(f"{model}: pilot in {spent:.0f} s, load average before it {load:.1f}", flush=True)
        watch = Watch()
        watch.start()
        status = reproduce({"model": model}, run.folder, notebooks, io.StringIO())
        watch.done.set()
        print(f"{model}: run ended with {status}, load average {os.getloadavg()[0]:.1f}")
        took = read_provenance(run.folder)["notebooks"]
        rows = {}
        for source in sources:
            book = nbformat.read(run.folder / "notebooks" / source.name, as_version=4)
            times = book.metadata["papermill"]
            ends = [pd.Timestamp(times[name]).timestamp() for name in ("start_time", "end_time")]
            rows[source.stem] = {
                "expected_s": 60 * told.loc[source.stem, "minutes"],
                "took_s": 60 * took[source.stem]["minutes"],
                "expected_gb": told.loc[source.stem, "memory_gb"],
                "took_gb": watch.peak(*ends) / 1e9,
            }
        found = pd.DataFrame(rows).T
        total = found.sum()
        total[["expected_gb", "took_gb"]] = found[["expected_gb", "took_gb"]].max()
        found.loc["all"] = total
        files = [file for file in run.folder.rglob("*") if file.is_file()]
        disk = sum(file.stat().st_size for file in files) / 1e6
        print(f"{model}: disk expected {told['disk_mb'].sum():.1f} MB, took {disk:.1f} MB")
    found.insert(2, "ratio", found["expected_s"] / found["took_s"])
    found["ratio_gb"] = found["expected_gb"] / found["took_gb"]
    return found


def main() -> int:
    """Print the tables; 1 if one of them misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--only", nargs="*", default=[""], help="numbers of notebooks")
    args = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for source in ordered_notebooks(REPO / "notebooks"):
            if source.name.startswith(tuple(args.only)):
                shutil.copy(source, folder)
        for model in args.models:
            found = compared(model, Path(folder))
            counts = found[found["took_s"] > COUNTS_FROM_S]
            outside = counts[~counts["ratio"].between(1 / FACTOR, FACTOR)]
            missed += len(outside)
            print(f"\n{model}, {torch.get_num_threads()} threads, both sides on this machine")
            print(found.round(2).to_string())
            print(
                f"outside of a factor {FACTOR}: {', '.join(outside.index) or 'none'}\n", flush=True
            )
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
