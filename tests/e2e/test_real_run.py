"""The main job as a user runs it: real notebooks, a real model, processes; and a kill half way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = "data/minivlm/small"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "visdepth_utils", *arguments]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=1500
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """The embedded model through all notebooks, twice, with the seconds each took."""
    out = tmp_path_factory.mktemp("real") / "run"
    calls = []
    for _ in range(2):
        start = time.monotonic()
        done = call("reproduce", "--model", MODEL, "--n", "32", "--out", str(out))
        calls.append((done, time.monotonic() - start))
    return out, calls


def test_all_notebooks_run_and_end_with_a_verdict(real: tuple) -> None:
    out, [(done, _), _] = real
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr == ""
    entries = json.loads((out / "claims.json").read_text())
    assert [entry["claim"] for entry in entries] == [f"C{i}" for i in range(1, 10)]
    for entry in entries:
        (line,) = [x for x in done.stdout.splitlines() if x.startswith(entry["claim"] + " ")]
        assert MODEL.removeprefix("data/") in line
        assert entry["verdict"] in line
        assert entry["n_images"] == (0 if entry["claim"] == "C9" else 32)  # C9 counts models
    facts = json.loads((out / "provenance.json").read_text())
    assert facts["model"]["name"] == MODEL
    assert facts["data"]["hash"]
    for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        assert facts["notebooks"][notebook.stem]["settings"]["n_samples"] == 32
        executed = nbformat.read(out / "notebooks" / notebook.name, as_version=4)
        for cell in executed.cells:
            assert all(item.get("name") != "stderr" for item in cell.get("outputs", []))
    page = (out / "report.html").read_text()
    for entry in entries:
        assert entry["verdict"] in page
        assert entry["effect_label"] in page
    assert "data:image/" in page


def test_the_second_call_takes_under_a_minute(real: tuple) -> None:
    _, [(first, _), (done, seconds)] = real
    assert done.returncode == 0
    assert ", 0 broken" in done.stdout
    assert "\n0 run, " in done.stdout

    def verdicts(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("C")]

    assert verdicts(done.stdout) == verdicts(first.stdout)
    assert seconds < 60


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, llava_path: Path) -> None:
    """Killed in its second step and started again, a notebook reads the first from the cache."""
    gate = tmp_path / "gate"
    gate.write_text("closed")
    cells = [
        'model = ""\nprofile = "quick"\nout_dir = ""',
        "import time\nfrom pathlib import Path\nimport pandas as pd\n"
        "from visdepth_utils.runs.run import open_run\n"
        "run = open_run(model=model, profile=profile, out_dir=out_dir)\n"
        'run.table("first", lambda: pd.DataFrame({"value": [time.time()]}));',
        f"while Path({str(gate)!r}).read_text() == 'closed':\n    time.sleep(0.05)",
        'run.table("second", lambda: pd.DataFrame({"value": [2]}));',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "00_steps.ipynb")
    out = tmp_path / "run"
    arguments = ["reproduce", "--model", str(llava_path), "--out", str(out)]
    arguments += ["--notebooks", str(tmp_path / "notebooks")]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command(*arguments), cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("tables/first-*.parquet")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not list(out.glob("tables/second-*"))
    gate.write_text("open")
    done = call(*arguments)
    assert done.returncode == 0, done.stdout
    assert "    first: from cache (1 rows)" in done.stdout
    assert "    second: measured (1 rows)" in done.stdout
    assert "00_steps: unchanged" not in done.stdout
