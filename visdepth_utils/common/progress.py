"""One plain line of progress for long steps: no widgets, nothing on stderr."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[int, int, str], None]


def progress_line(stream: TextIO | None = None, every: float | None = None) -> Progress:
    """Make a progress callback that prints samples done, samples per second and time left.

    In a terminal the line is rewritten in place; in a notebook too, but less often, and its last
    state holds no times, so that the stored output does not depend on the machine; in a log there
    is a new line every few seconds. The clock starts now, and again when the label changes; what
    follows a comma in it, such as a loss, may change from call to call. ``every``: least seconds
    between two prints. ``stream`` None: what ``sys.stdout`` is at the time of each call.
    """
    label_now: str | None = None
    start = last_call = time.monotonic()
    last_print, width = float("-inf"), 0

    def update(done: int, total: int, label: str) -> None:
        nonlocal label_now, start, last_call, last_print, width
        out = stream or sys.stdout
        kind = _kind(out)
        now = time.monotonic()
        if (step := label.partition(",")[0]) != label_now:
            label_now, start, width = step, last_call, 0
        last_call = now
        finished = done >= total
        wait = {"terminal": 0.2, "notebook": 2.0, "log": 5.0}[kind] if every is None else every
        if not finished and now - last_print < wait:
            return
        spent = now - start
        text = f"{label}: {done}/{total}"
        if finished:
            text += " done" if kind == "notebook" else f" in {duration(spent)}"
            last_print = float("-inf")
        else:
            last_print = now
            if done and spent > 0:
                rate = done / spent
                text += f", {rate:.3g}/s, {duration((total - done) / rate)} left"
        if kind == "log":
            out.write(text + "\n")
        else:
            # Padding covers what a longer state of the same line left behind.
            padded, width = text.ljust(width), len(text)
            out.write("\r" + padded + ("\n" if finished else ""))
        out.flush()

    return update


def duration(seconds: float) -> str:
    """Seconds in words a reader takes in at once: "0.4 s", "42 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _kind(stream: TextIO) -> str:
    """Terminal, notebook kernel, or anything else."""
    if stream.isatty():
        return "terminal"
    return "notebook" if type(stream).__module__.startswith("ipykernel") else "log"
