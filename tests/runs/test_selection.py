"""A run keeps which rows of which data it used."""

import json
from pathlib import Path

import pytest

from tests import hubdata
from visdepth_utils.data.tasks import load_task
from visdepth_utils.report.sections import flat_rows
from visdepth_utils.runs.records import read_provenance
from visdepth_utils.runs.run import Run, open_run


@pytest.fixture
def run(llava_path: Path, tmp_path: Path) -> Run:
    return open_run(model=str(llava_path), n_samples=4, out_dir=tmp_path / "run")


def kept(run: Run, task) -> dict:
    file = run.folder / "selection" / f"{task.name}-{task.content_hash[:12]}.json"
    return json.loads(file.read_text())


def test_rows_prompt_and_split_of_a_data_set_are_kept(run: Run, tmp_path: Path) -> None:
    data = hubdata.chartqa(tmp_path / "charts", 8)
    task = load_task("chartqa", n=3, seed=5, source=data, prompt="Q: {question} A:")
    run.keep(task)
    facts = kept(run, task)
    assert facts["samples"] == [sample.id for sample in task.samples]
    assert (facts["split"], facts["seed"], facts["prompt"]) == ("test", 5, "Q: {question} A:")
    assert facts["source"] == str(data)
    assert facts["content_hash"] == task.content_hash
    (line,) = read_provenance(run.folder)["selection"].values()
    assert line == f"3 samples of {data}, split test"


def test_a_revision_and_skipped_rows_are_in_the_line(run: Run, tmp_path: Path) -> None:
    data = hubdata.chartqa(tmp_path / "charts", 8)
    task = load_task("chartqa", n=3, source=data)
    task.selection.update(revision="c0ffee", skipped={"row 1": "no picture"})
    run.keep(task)
    (line,) = read_provenance(run.folder)["selection"].values()
    assert line == f"3 samples of {data}, revision c0ffee, split test, 1 bad rows skipped"
    assert kept(run, task)["skipped"] == {"row 1": "no picture"}


def test_tasks_of_the_embedded_layout_are_kept_by_their_samples(run: Run, worlds: Path) -> None:
    one, two = load_task("vqa", 4, source=worlds), load_task("vqa", 6, source=worlds)
    run.keep(one, two)
    run.keep(one)  # the same again changes nothing
    assert kept(run, one)["samples"] == [sample.id for sample in one.samples]
    lines = read_provenance(run.folder)["selection"]
    assert list(lines.values()) == [f"4 samples of {worlds}", f"6 samples of {worlds}"]
    shown = dict(flat_rows(read_provenance(run.folder)))  # what the report lists
    assert shown[f"selection / vqa-{two.content_hash[:12]}"] == f"6 samples of {worlds}"
