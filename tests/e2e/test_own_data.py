"""A model of another family on data of others, as a user runs it: a verdict for every claim."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests import hubdata, tiny
from visdepth_utils.claims.registry import VERDICTS, load_claims

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess]:
    """A tiny Qwen2.5-VL on a folder as ChartQA has it on the hub, through all notebooks."""
    folder = tmp_path_factory.mktemp("own")
    data = hubdata.chartqa(folder / "charts", 16)
    model = tiny.qwen(folder / "tiny-qwen", layers=6)
    call = [sys.executable, "-m", "visdepth_utils", "reproduce", "--model", str(model)]
    call += ["--source", str(data), "--n", "8", "--out", str(folder / "run")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    return folder / "run", data, done


def test_every_claim_gets_a_verdict_or_is_not_testable(run: tuple) -> None:
    out, data, done = run
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr == ""
    entries = {entry["claim"]: entry for entry in json.loads((out / "claims.json").read_text())}
    assert list(entries) == list(load_claims()["claims"]) == [f"C{i}" for i in range(10)]
    assert {entry["verdict"] for entry in entries.values()} <= set(VERDICTS)
    assert all(entry["reason"] for entry in entries.values())
    for claim, task in (("C1", "caption"), ("C4", "mcq"), ("C5", "reason"), ("C7", "reason")):
        assert entries[claim]["verdict"] == "not testable"
        assert entries[claim]["reason"] == (
            f"the data in {data} has no task {task!r} (it holds ChartQA rows): "
            "give a source that has it"
        )
    assert entries["C3"]["n_images"] == 8  # measured, on few images
    assert ", 0 broken, " in done.stdout
    told = done.stdout.partition("[")[0]
    assert f"not testable: C1, C6: the data in {data} has no task 'caption'" in told


def test_the_start_shows_the_tasks_that_the_data_has(run: tuple) -> None:
    notebook = nbformat.read(run[0] / "notebooks" / "00_start_here.ipynb", as_version=4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    printed = [o.text for o in outputs if o.output_type == "stream"]
    (table,) = [text for text in printed if "full" in text and "blind" in text]
    assert {line.split()[0] for line in table.splitlines()[2:]} == {"vqa", "chart"}
    facts = json.loads((run[0] / "provenance.json").read_text())
    assert facts["data"]["source"] == str(run[1]) and facts["data"]["hash"]
    kept = [json.loads(file.read_text()) for file in (run[0] / "selection").glob("*.json")]
    assert {task["task"] for task in kept} == {"vqa", "chart"}
    assert all(len(task["samples"]) == 8 and task["split"] == "test" for task in kept)
    assert set(facts["selection"]) == {f"{t['task']}-{t['content_hash'][:12]}" for t in kept}
