"""Notebooks at the same time: how many, with which threads, what is shown, and how it ends."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from visdepth_utils.notebooks import schedule, streams


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.delenv("VISDEPTH_ENGINE", raising=False)


def test_a_small_model_on_the_cpu_runs_several(
    llava_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(llava_path)
    assert schedule.chosen_jobs(None, model, "cpu") == 4
    assert schedule.chosen_jobs(None, model, "cuda") == 1
    assert schedule.chosen_jobs(None, "owner/name", "cpu") == 1
    assert schedule.chosen_jobs(3, model, "cuda") == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert schedule.chosen_jobs(None, model, "cpu") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert schedule.chosen_jobs(None, model, "cpu") == schedule.MOST
    monkeypatch.setattr(schedule, "SMALL", 10)
    assert schedule.chosen_jobs(None, model, "cpu") == 1


def test_two_run_at_once_with_their_share_of_threads() -> None:
    both = threading.Barrier(2, timeout=20)
    seen = []

    def work() -> None:
        both.wait()  # passes only if the other one runs now
        seen.append(os.environ["OMP_NUM_THREADS"])

    schedule.run_together([work, work], 2)
    assert seen == ["2", "2"]
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_one_job_runs_in_order_with_all_threads() -> None:
    seen = []
    works = [lambda i=i: seen.append((i, os.environ["OMP_NUM_THREADS"])) for i in range(3)]
    schedule.run_together(works, 1)
    assert seen == [(0, "4"), (1, "4"), (2, "4")]


def test_after_an_interrupt_nothing_new_begins_and_the_others_learn_of_it() -> None:
    begun, told = [], []

    def interrupted() -> None:
        while not begun:
            time.sleep(0.01)
        raise KeyboardInterrupt

    def other() -> None:
        begun.append(1)
        until = time.monotonic() + 20
        while not schedule.stopping() and time.monotonic() < until:
            time.sleep(0.01)
        told.append(schedule.stopping())

    late: list[int] = []
    works = [interrupted, other, *[lambda: late.append(1)] * 8]
    with pytest.raises(KeyboardInterrupt):
        schedule.run_together(works, 2)
    assert told == [True]
    assert not late
    assert not schedule.stopping()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_kernel_that_starts_while_the_run_is_stopped_is_ended_and_nothing_else(jobs: int) -> None:
    """Else the run would go on until that notebook is done."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(100)"]
    bystander = subprocess.Popen(sleeps)
    ends = []

    def just_starting() -> None:
        until = time.monotonic() + 20
        while not schedule.stopping() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)  # so that the first look for kernels does not find it
        ends.append(subprocess.Popen([*sleeps, "ipykernel_launcher"]).wait(timeout=60))

    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            schedule.run_together([just_starting] * jobs, jobs)
        assert ends == [-signal.SIGKILL] * jobs
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_lines_are_whole_and_tagged_and_progress_is_thinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(streams.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    tagged = streams.Tagged(out, "[3] ")
    for text, at in (
        ("first ", 0),
        ("line\nsec", 1),
        ("ond\r\n", 2),
        ("\rstep 1", 3),
        ("\rstep 2", 4),  # step 1 is over, but a line was shown two seconds ago
        ("\rstep 3", 9),
        ("\rstep 4   \n", 10),
        ("no end", 11),
    ):
        now[0] = at
        tagged.write(text)
    tagged.end()
    assert out.getvalue().splitlines() == [
        "[3] first line",
        "[3] second",
        "[3] step 2",
        "[3] step 4",
        "[3] no end",
    ]


def test_a_line_is_written_in_one_piece() -> None:
    """Else the end of another thread's line can come between a line and its own end."""
    pieces: list[str] = []

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    streams.say(Pipe(), "[3/9] one")
    streams.Tagged(Pipe(), "[3] ").write("two\nthree\n")
    assert pieces == ["[3/9] one\n", "[3] two\n", "[3] three\n"]
