"""What docs/python.md and docs/architecture.md show is run."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import tiny
from visdepth_utils.data.tasks import Task
from visdepth_utils.models.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def task() -> Task:
    return Task("vqa", [tiny.sample(i, words=5) for i in range(2)], 6, "test")


def example(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_toy_metric_is_the_mean_length_of_image_states(llava: VLM, task: Task) -> None:
    table = example("toy_metric").mean_norm(llava, task)
    assert len(table) == len(task.samples) * (llava.n_layers + 1)
    enc = llava.encode(task.samples)
    with torch.no_grad():
        first = llava.model(**enc.inputs, output_hidden_states=True).hidden_states[1]
    own = first[0][enc.is_image[0]].norm(dim=-1).mean()
    row = table[(table["layer"] == 1) & (table["sample"] == task.samples[0].id)].iloc[0]
    assert row["value"] == pytest.approx(float(own), rel=1e-5)


def test_the_toy_intervention_changes_what_it_should_and_goes(llava: VLM, task: Task) -> None:
    enc = llava.encode(task.samples)
    shrunk = example("toy_intervention").shrunk
    run = lambda: llava.model(**enc.inputs, output_hidden_states=True)  # noqa: E731
    with torch.no_grad():
        plain = run()
        with shrunk(llava, enc, depth=1):
            half = run()
        with shrunk(llava, enc, depth=llava.n_layers):
            none = run()
        again = run()
    assert torch.equal(plain.hidden_states[1], half.hidden_states[1])
    assert not torch.allclose(plain.logits, half.logits)
    assert torch.equal(plain.logits, none.logits)
    assert torch.equal(plain.logits, again.logits)


def test_examples_take_less_than_thirty_lines() -> None:
    for file in (ROOT / "docs" / "examples").glob("*.py"):
        assert len(file.read_text().splitlines()) < 30, file.name


def test_the_context_managers_of_the_page_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL
    )
    (block,) = [text for text in blocks if "with truncated(" in text]
    assert len(block.splitlines()) <= 12
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(block, names)
    assert names["ids"].shape[0] == names["logits"].shape[0] == 2


def test_the_page_names_what_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in re.findall(
        r"`((?:visdepth_utils|tests|docs|data|training|tools|calibration)/[^`*]*)`", text
    ):
        assert (ROOT / path).exists(), path
