"""Notebooks run by parameters on other checkpoints and leave a whole run behind."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tests import tiny
from tests.families.checkpoints import CHECKPOINTS
from tests.strict import no_warnings
from visdepth_utils.claims.registry import VERDICTS
from visdepth_utils.notebooks import execute
from visdepth_utils.notebooks.streams import Indented

REPO = Path(__file__).resolve().parents[2]
NOTEBOOK = REPO / "notebooks" / "01_image_tokens_stabilise.ipynb"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Eight layers and 64 image tokens: the smallest model the claim can be tested on."""
    return tiny.llava(tmp_path_factory.mktemp("tiny"), size=64, patch=8, layers=8, width=32)


@pytest.mark.parametrize("where", ["top", "notebooks"])
def test_claim_1_runs_on_a_tiny_checkpoint(checkpoint, tmp_path, where):
    execute.use_own_kernel()
    cwd = REPO if where == "top" else REPO / "notebooks"
    # The second run has enough images for a verdict on the pattern; the first has not.
    n = 4 if where == "top" else 30
    parameters = {"model": str(checkpoint), "n_samples": n, "out_dir": str(tmp_path / "run")}
    log = io.StringIO()
    target = tmp_path / "out.ipynb"
    outcome = execute.execute(NOTEBOOK, target, parameters, cwd, Indented(log))
    assert outcome.error is None, outcome.details

    cells = nbformat.read(target, as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    assert [o["text"] for o in shown if o.get("name") == "stderr"] == []
    # The diagram of what the notebook does, and three figures of what it found.
    assert sum("image/png" in o.get("data", {}) for o in shown) == 4

    (entry,) = json.loads((tmp_path / "run" / "claims.json").read_text())
    assert entry["claim"] == "C1"
    assert entry["verdict"] in VERDICTS
    assert entry["n_images"] == n
    if n < 30:
        assert entry["verdict"] == "inconclusive"
        assert f"{n} images" in entry["reason"]
    else:
        assert entry["effect"] is not None
        assert entry["control_effect"] is not None
    assert len(list((tmp_path / "run" / "figures").glob("01_*.png"))) == 3
    assert len(list((tmp_path / "run" / "tables").glob("*.parquet"))) == 4


def run_here(notebook: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook's code in this process: a kernel would first import all that is here."""
    book = parameterize_notebook(load_notebook_node(str(notebook)), parameters)
    shell = InteractiveShell()
    for cell in book.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()


@pytest.fixture(scope="module")
def qwen_checkpoint(tmp_path_factory):
    """A random Qwen2.5-VL as the hub has it; deep enough for the claims to be asked."""
    return tiny.qwen(tmp_path_factory.mktemp("qwen"), layers=6)


@pytest.fixture(scope="module")
def smolvlm_checkpoint(tmp_path_factory):
    """A random SmolVLM with its own processor and chat template, as the hub has it."""
    made = CHECKPOINTS["smolvlm"]

    def deeper(ids):
        config = made.config(ids)
        return config | {"text_config": config["text_config"] | {"num_hidden_layers": 6}}

    return replace(made, config=deeper).write(tmp_path_factory.mktemp("smolvlm") / "model")


@pytest.mark.parametrize(
    ("model", "number", "claim", "reason"),
    [
        ("qwen", "02", "C2", "measures show text moving more"),  # states move without an answer
        ("qwen", "03", "C3", "no better than with another picture"),
        ("qwen", "04", "C4", "the model cannot do it"),
        ("qwen", "05", "C5", "names a final answer in 0% of its outputs"),
        ("qwen", "06", "C6", "the cut does not lower the score beyond doubt"),
        ("qwen", "07", "C7", "the model cannot do it"),
        ("qwen", "08", "C8", "the model cannot do it"),
        ("smolvlm", "05", "C5", "% of its outputs only"),
        ("smolvlm", "06", "C6", "the cut does not lower the score beyond doubt"),
        ("smolvlm", "07", "C7", "the model cannot do it"),
    ],
)
def test_a_model_that_cannot_answer_is_not_testable(
    request, monkeypatch, capfd, tmp_path, model, number, claim, reason
):
    # Its history would be a file that every user has.
    monkeypatch.setattr("IPython.core.history.HistoryManager.enabled", False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (notebook,) = (REPO / "notebooks").glob(f"{number}_*.ipynb")
    checkpoint = request.getfixturevalue(f"{model}_checkpoint")
    capfd.readouterr()
    with no_warnings():
        run_here(
            notebook, {"model": str(checkpoint), "n_samples": 30, "out_dir": str(tmp_path / "run")}
        )
    assert capfd.readouterr().err == ""
    assert len(list((tmp_path / "run" / "figures").glob(f"{number}_*.png"))) >= 2
    (entry,) = json.loads((tmp_path / "run" / "claims.json").read_text())
    verdicts = VERDICTS[:3] if claim == "C2" else ("not testable",)
    assert entry["claim"] == claim
    assert entry["verdict"] in verdicts
    assert reason in entry["reason"]
