"""Which notebooks run at the same time.

Matrices of a small model are too small to be worth sharing among threads: on two cores, two
notebooks of one thread each are done sooner than two after one another with two threads. A notebook
that measures time runs alone, with all threads, and one that shows the others' verdicts runs last.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import psutil

from visdepth_utils.common.files import REPO, environment
from visdepth_utils.models.checkpoints import locate
from visdepth_utils.runs.engine import chosen_engine

ALONE = "alone"
READS_VERDICTS = "reads-verdicts"
"""Tags of a cell: its notebook measures time; its notebook shows what the others and other runs
have found, and is stale when that changes."""
SMALL = 200e6
"""Bytes of weights up to which several processes may each hold a model."""
MOST = 4
_stopping = threading.Event()
Work = Callable[[], None]


def chosen_jobs(jobs: int | None, model: str, device: str) -> int:
    """How many notebooks run at the same time.

    As many as were asked for. Without a wish, as many as there are threads, up to 4, for a small
    model on the CPU, and one where the model is large, comes from the hub, or runs on an
    accelerator or on Ray.
    """
    if jobs is not None:
        return jobs
    weights = list(Path(locate(model)).glob("*.safetensors"))  # none for a hub id
    size = sum(file.stat().st_size for file in weights)
    if not weights or size > SMALL or device != "cpu" or chosen_engine() != "local":
        return 1
    return min(threads(), MOST)


def threads() -> int:
    """Threads that this process may use: by OMP_NUM_THREADS, else the cores it may run on."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_together(works: list[Work], jobs: int) -> None:
    """Run pieces of work, ``jobs`` at a time, each of them with its share of the threads.

    Each runs one notebook. The first exception of one is raised, and what has not begun is left
    out; at Ctrl-C the kernels at work are ended first.
    """
    # In threads even where it is one at a time: Ctrl-C comes to the main thread, and would leave
    # the event loop of a notebook that runs there half way through a cell.
    jobs = max(1, min(jobs, len(works)))
    share = {"OMP_NUM_THREADS": str(max(1, threads() // jobs))} if jobs > 1 else {}
    # papermill changes the working directory around each notebook: all must mean the same one.
    with environment(**share), contextlib.chdir(REPO), ThreadPoolExecutor(jobs) as pool:
        futures: list[Future] = []
        try:
            futures.extend(pool.submit(_unless_stopping, work) for work in works)
            _wait(futures)
        except BaseException:
            _stopping.set()
            for future in futures:
                future.cancel()
            while wait(futures, timeout=0).not_done:  # also a kernel that was just being started
                _end_kernels()
                wait(futures, timeout=0.2)
            raise
        finally:
            wait(futures)
            _stopping.clear()


def stopping() -> bool:
    """Whether the kernels have been ended: how a notebook ended then says nothing about it."""
    return _stopping.is_set()


def _unless_stopping(work: Work) -> None:
    """Begin nothing after another piece of work has failed."""
    if stopping():
        return
    try:
        work()
    except BaseException:
        _stopping.set()
        raise


def _wait(futures: list[Future]) -> None:
    """Until all are done or one failed, whose exception is raised."""
    pending = set(futures)
    while pending:  # in small steps: Ctrl-C is noticed between them
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


def _end_kernels() -> None:
    """End the kernels among the processes that this one has started, and leave Ray's alone."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("ipykernel" in word for word in child.cmdline()):
                child.kill()
