"""The main job as a user runs it: real notebooks, a real model, processes; and a kill half way.

Every notebook is executed once, as it is committed: what it prints is compared with the outputs
stored in it, and the run that it leaves behind with what the command said.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.test_hygiene import CHECK, NOTEBOOKS
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.common.cells import default_parameters

ROOT = Path(__file__).resolve().parents[2]
INJECTED = "injected-parameters"

pytestmark = pytest.mark.timeout(3600)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "visdepth_utils", *arguments]


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command(*arguments), cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object]]:
    """`make reproduce`, twice, with the seconds each took, into a folder without other runs.

    Where the tests have a folder for results it stays there: nbval finds its tables.
    """
    given = os.environ.get("VISDEPTH_RESULTS")
    results = Path(given) / "real" if given else tmp_path_factory.mktemp("results")
    calls = []
    for _ in range(2):
        start = time.monotonic()
        done = call("reproduce", "--jobs", "2", VISDEPTH_RESULTS=str(results))
        calls.append((done, time.monotonic() - start))
    return results / "base-quick", calls


def shown(cell: nbformat.NotebookNode) -> dict[str, str]:
    """What a cell printed and showed, by kind; pictures depend on the fonts of a machine."""
    texts: dict[str, str] = defaultdict(str)
    for output in cell.outputs:
        parts = output.get("data") or {output.get("name", "error"): output.get("text", "")}
        for kind, text in parts.items():
            if not kind.startswith("image/"):
                texts[kind] += text
    return dict(texts)


def differences(stored: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> list[str]:
    """Checked cells that show something else than what is stored, and what."""
    first, second = (
        [
            cell
            for cell in book.cells
            if cell.cell_type == "code" and INJECTED not in cell.metadata.get("tags", [])
        ]
        for book in (stored, executed)
    )
    assert [cell.source for cell in first] == [cell.source for cell in second]
    return [
        f"code cell {number} now shows {shown(now)}, stored is {shown(then)}"
        for number, (then, now) in enumerate(zip(first, second, strict=True), 1)
        if CHECK in then.metadata.get("tags", []) and shown(now) != shown(then)
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_stored_in_it(real: tuple, notebook: Path) -> None:
    out, [(done, _), _] = real
    assert (out / "notebooks" / notebook.name).exists(), done.stdout[-2000:] + done.stderr[-2000:]
    executed = nbformat.read(out / "notebooks" / notebook.name, as_version=4)
    assert differences(nbformat.read(notebook, as_version=4), executed) == []
    for cell in executed.cells:
        assert all(item.get("name") != "stderr" for item in cell.get("outputs", []))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_another_number_in_any_checked_cell_is_a_difference(notebook: Path) -> None:
    stored, other = (nbformat.read(notebook, as_version=4) for _ in range(2))
    checked = 0
    for cell in other.cells:
        if CHECK in cell.metadata.get("tags", []):
            checked += 1
            for output in cell.outputs:
                parts = output.get("data", output)
                for kind in {"text", "text/plain", "text/html"} & set(parts):
                    parts[kind] = re.sub(r"[0-9]$|$", "x", parts[kind], count=1)
    assert len(differences(stored, other)) == checked >= 3
    assert differences(stored, stored) == []


def test_all_notebooks_run_and_end_with_a_verdict(real: tuple) -> None:
    out, [(done, _), _] = real
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr == ""
    entries = json.loads((out / "claims.json").read_text())
    assert [entry["claim"] for entry in entries] == list(load_claims()["claims"])
    facts = json.loads((out / "provenance.json").read_text())
    asked = {book.stem: default_parameters(book)["n_samples"] for book in NOTEBOOKS}
    for entry in entries:
        (line,) = [x for x in done.stdout.splitlines() if x.startswith(entry["claim"] + " ")]
        assert "minivlm/base" in line
        assert entry["verdict"] in line
        assert entry["n_images"] == (asked[entry["notebook"]] or 0)  # C9 counts models
    assert facts["model"]["name"] == "data/minivlm/base"
    assert facts["data"]["hash"]
    for notebook, n in asked.items():
        assert facts["notebooks"][notebook]["settings"]["n_samples"] == n
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
