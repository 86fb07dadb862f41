"""A run of all notebooks that is stopped in every one of them ends as one that never was."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import tiny
from tests.faults.test_kill import ROOT, STOPPED, kill

STARTED = re.compile(r"\[\d+/\d+\] (\w+)$")
CLOCK = "C8"
TIMED = ("c8_times", "savings_table")
"""Tables that hold times."""


def command(model: Path, out: Path, jobs: int) -> list[str]:
    """The command line of a run on very few samples."""
    options = {"model": model, "n": 2, "out": out, "jobs": jobs}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "visdepth_utils", "reproduce", *words]


def claims(out: Path) -> list[dict[str, Any]]:
    """All verdicts; of the one that a clock decides only those parts that no clock decides."""
    found = json.loads((out / "claims.json").read_text())
    for entry in found:
        if entry["claim"] == CLOCK:
            for measured in ("effect", "ci", "control_effect", "details", "controls", "reason"):
                entry.pop(measured, None)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deep and wide enough for every notebook to have something to do."""
    folder = tmp_path_factory.mktemp("tiny")
    return tiny.llava(folder, size=64, patch=8, layers=8, width=32)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The run that nothing happens to, in a folder of its own: notebook 10 looks at siblings."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(command(model, out, jobs=1), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.timeout(1800)
def test_stopped_once_in_every_notebook(model: Path, undisturbed: Path, tmp_path: Path) -> None:
    moments = random.Random(20260410)
    out = tmp_path / "run"
    stopped: list[str] = []
    left: list[psutil.Process] = []
    while True:
        process = subprocess.Popen(
            command(model, out, jobs=2),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        new = None
        for line in process.stdout:
            found = STARTED.fullmatch(line.rstrip())
            if found and found[1] not in stopped:
                new = found[1]
                break
        if new is None:
            assert process.wait() == 0, process.stderr.read()
            break
        stopped.append(new)
        time.sleep(moments.uniform(0, 6))
        if len(stopped) % 2:
            left += kill(process, everything=len(stopped) % 4 == 1)
        else:
            left += psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            text, error = process.communicate(timeout=60)
            if process.returncode != 0:  # it had not finished by then
                assert process.returncode == 130, text + error
                assert error == STOPPED
                assert not re.search(r"Traceback|KeyboardInterrupt|broke after", text)
    assert stopped and set(stopped) == {f.stem for f in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert claims(out) == claims(undisturbed)
    for file in (undisturbed / "tables").glob("*.parquet"):
        if not file.name.startswith(TIMED):
            assert (out / "tables" / file.name).read_bytes() == file.read_bytes(), file.name
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive, "a kernel outlived its run"
