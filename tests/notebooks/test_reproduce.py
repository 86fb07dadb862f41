"""Reproducing on small notebooks: what runs, what is reused, what is shown, what breaks."""

import io
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

from visdepth_utils import __main__ as command
from visdepth_utils.notebooks import execute
from visdepth_utils.notebooks.reproduce import _inputs, ordered_notebooks, refresh_all, reproduce
from visdepth_utils.notebooks.streams import Indented
from visdepth_utils.report.verdict_table import effect_text
from visdepth_utils.runs import measuring_code
from visdepth_utils.runs.records import read_claims, read_provenance
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import check_settings

PARAMETERS = (
    'model = ""\nsource = None\nn_samples = 4\nseed = 0\ndevice = "auto"\n'
    'dtype = "auto"\nprofile = "quick"\nout_dir = ""'
)
OPEN = """import sys
import pandas as pd
from matplotlib.figure import Figure
from visdepth_utils.runs.run import open_run, progress_line
run = open_run(model=model, source=source, n_samples=n_samples, seed=seed, device=device,
               dtype=dtype, profile=profile, out_dir=out_dir, default_n=4)"""
MEASURE = """progress = progress_line(every=0)
def measure():
    for done in range(1, 4):
        progress(done, 3, "measure")
    return pd.DataFrame({"value": [1.0, 2.0, n_samples]})
table = run.table("values", measure, key={"k": 1})
print("python", sys.executable)
fig = Figure()
fig.add_subplot().plot(table["value"])
run.figure(fig, "values_by_layer")"""
RECORD = """run.record({"claim": "C1", "model": model,
            "statement": "x < y & <script>alert(1)</script>",
            "verdict": "not supported", "effect": 0.12345, "ci": [0.1, 0.2],
            "n_images": n_samples, "control_effect": None, "thresholds": {},
            "notebook": "01_second", "reason": "because"})"""


def write(file: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), first, *rest])
    if file.stem != "00_first":  # neither no kernel name nor someone else's matters
        notebook.metadata["kernelspec"] = {"name": "my-env", "display_name": "my-env"}
    nbformat.write(notebook, file)
    return file


def call(model: Path, notebooks: Path, out: Path, **chosen: object) -> tuple[int, str]:
    stream = io.StringIO()
    status = reproduce({"model": str(model), **chosen}, out, notebooks, stream, jobs=1)
    return status, stream.getvalue()


class Story:
    """One run, the same again, one with a notebook that breaks, and one after it was mended."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.out, self.notebooks = folder / "out", folder / "notebooks"
        self.notebooks.mkdir()
        write(self.notebooks / "00_first.ipynb", "print('hello')")
        second = self.notebooks / "01_second.ipynb"
        write(second, OPEN, MEASURE, RECORD)
        self.first = call(model, self.notebooks, self.out)
        self.claims = read_claims(self.out)
        self.provenance = read_provenance(self.out)
        self.page = (self.out / "report.html").read_text()
        self.executed = nbformat.read(self.out / "notebooks" / "01_second.ipynb", as_version=4)
        self.again = call(model, self.notebooks, self.out)
        self.page_again = (self.out / "report.html").read_text()
        write(
            second, OPEN, MEASURE, RECORD, "raise ValueError('no \\x1b[31mimages\\x1b[0m\\nat all')"
        )
        self.broken = call(model, self.notebooks, self.out)
        self.broken_claims = read_claims(self.out)
        self.broken_page = (self.out / "report.html").read_text()
        write(second, OPEN, MEASURE, RECORD)
        self.mended = call(model, self.notebooks, self.out)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, llava_path: Path) -> Story:
    with pytest.MonkeyPatch.context() as patch:
        # Somebody may edit a module while the tests run; what an edit does has a test of its own.
        patch.setattr(measuring_code, "hash_sources", lambda *folders: "fixed")
        return Story(tmp_path_factory.mktemp("story"), llava_path)


def test_all_notebooks_run_with_live_output_and_a_verdict_table(story: Story) -> None:
    status, text = story.first
    assert status == 0
    lines = text.splitlines()
    assert lines.index("[1/2] 00_first") < lines.index("    hello")
    assert any(line.startswith("[2/2] 01_second: done in ") for line in lines)
    assert "    values: measured (3 rows)" in lines
    assert "    measure: 2/3" in text  # progress is shown while it happens
    row = next(line for line in lines if line.startswith("C1"))
    assert re.split(r"\s{2,}", row)[1:5] == ["-", "not supported", "-", "0.123 [0.1, 0.2]"]
    assert re.split(r"\s{2,}", row)[6:8] == ["4", "embedded worlds"]
    assert "2 run, 0 unchanged, 0 broken" in text


def test_the_kernel_is_the_interpreter_of_the_call(story: Story) -> None:
    assert f"    python {sys.executable}" in story.first[1]


def test_the_executed_copy_keeps_one_line_of_progress(story: Story) -> None:
    text = "".join(
        output.text
        for cell in story.executed.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "\r" not in text
    assert "measure: 3/3 done" in text
    assert "measure: 1/3" not in text


def test_parameters_are_literals_and_what_was_not_chosen_keeps_its_default(story: Story) -> None:
    injected = next(
        cell
        for cell in story.executed.cells
        if "injected-parameters" in cell.metadata.get("tags", [])
    )
    names = {line.split(" = ")[0] for line in injected.source.splitlines() if " = " in line}
    assert names == {"model", "profile", "out_dir"}
    notebooks = story.provenance["notebooks"]
    assert notebooks["01_second"]["settings"]["n_samples"] == 4
    assert notebooks["00_first"]["minutes"] >= 0
    assert story.claims[0]["n_images"] == 4


def test_a_second_call_runs_nothing_and_reports_the_same(story: Story) -> None:
    status, text = story.again
    assert status == 0
    assert "0 run, 2 unchanged, 0 broken" in text
    assert "hello" not in text
    assert "not supported" in text
    table = story.page.partition('<h2 id="source">')[0]
    assert story.page_again.partition('<h2 id="source">')[0] == table


@pytest.mark.parametrize("change", ["nothing", "output", "source", "parameter", "code", "versions"])
def test_inputs_of_a_notebook(
    change: str, tmp_path: Path, llava_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring_code, "hash_sources", lambda folder: "code")
    chosen = {"source": None, "n_samples": None, "seed": 0, "device": "cpu", "dtype": "auto"}
    run = Run(tmp_path, check_settings(model=str(llava_path), profile="quick", **chosen))
    file = write(tmp_path / "00_a.ipynb", "print(1)")
    parameters = {"model": str(llava_path)}
    before = _inputs(run, file, parameters)
    if change == "source":
        write(file, "print(2)")
    elif change == "output":
        refresh_all([file], io.StringIO())
    elif change == "parameter":
        parameters["seed"] = 1
    elif change == "code":
        monkeypatch.setattr(measuring_code, "hash_sources", lambda folder: "other")
    elif change == "versions":
        monkeypatch.setattr("visdepth_utils.runs.provenance.versions", lambda: {"torch": "9"})
    same = _inputs(run, file, parameters) == before
    assert same == (change in ("nothing", "output"))


def test_a_broken_notebook_does_not_keep_the_others_from_running(story: Story) -> None:
    status, text = story.broken
    assert status == 1
    assert "broken: 01_second: ValueError: no images" in text.splitlines()
    assert "Traceback" not in text
    assert "[1/2] 00_first: unchanged" in text
    assert "no verdicts recorded" in text
    assert story.broken_claims == []  # not even the one that it recorded before it broke
    assert "ValueError: no images" in story.broken_page


def test_after_mending_only_what_changed_is_measured(story: Story) -> None:
    status, text = story.mended
    assert status == 0
    assert "1 run, 1 unchanged" in text
    assert "values: from cache (3 rows)" in text


def test_other_settings_do_not_go_into_a_run_that_is_there(
    story: Story, worlds: Path, llava_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {file: file.read_bytes() for file in story.out.rglob("*") if file.is_file()}
    given = ["--model", str(llava_path), "--notebooks", str(story.notebooks)]
    given += ["--out", str(story.out), "--source", str(worlds), "--n", "3"]
    for beside in ([], ["--dry"]):
        assert command.main(["reproduce", *given, *beside]) == 2
        said = capsys.readouterr().err
        assert f"error: {story.out} holds a run with n_samples default, source default" in said
        assert f"this one has n_samples 3, source '{worlds}': give another folder (OUT=" in said
        assert len(said.splitlines()) == 1
    assert {file: file.read_bytes() for file in story.out.rglob("*") if file.is_file()} == kept


def test_the_report_is_one_escaped_page(story: Story) -> None:
    page = story.page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "4 images of embedded worlds" in page
    assert 'src="data:image/svg+xml;base64,' in page
    assert 'href="notebooks/01_second.html"' in page
    assert "http://" not in page
    assert "https://" not in page
    assert 'name="viewport"' in page
    order = ('<h2 id="verdicts">', "<h2>Figures", '<h2 id="source">')
    assert [page.index(part) for part in order] == sorted(page.index(part) for part in order)
    assert (story.out / "notebooks" / "01_second.html").stat().st_size > 10_000


def test_verdicts_command_prints_the_table_of_a_run(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["verdicts", str(story.out)]) == 0
    assert "not supported" in capsys.readouterr().out


def test_a_notebook_that_ignores_a_parameter_is_broken(tmp_path: Path, llava_path: Path) -> None:
    write(tmp_path / "00_a.ipynb", "1", parameters='model = ""\nout_dir = ""')
    status, text = call(llava_path, tmp_path, tmp_path / "out", n_samples=3)
    assert status == 1
    assert "00_a: its cell tagged 'parameters' does not declare n_samples, profile" in text


def test_a_dead_kernel_is_one_line(tmp_path: Path, llava_path: Path) -> None:
    write(tmp_path / "00_a.ipynb", "import os\nos._exit(9)")
    status, text = call(llava_path, tmp_path, tmp_path / "out")
    assert status == 1
    assert "broken: 00_a: DeadKernelError: the kernel died" in text


def test_a_kernel_that_dies_as_it_starts_breaks_its_notebook_only(
    tmp_path: Path, llava_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "00_a.ipynb", "1")
    write(tmp_path / "01_b.ipynb", "1")
    start = [sys.executable, "-c", "import sys; sys.exit('not today')", "{connection_file}"]
    spec = KernelSpec(argv=start, display_name="ends at once", language="python")
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda *_: spec)
    status, text = call(llava_path, tmp_path, tmp_path / "out")
    assert status == 1
    assert "broken: 00_a: DeadKernelError: the kernel died" in text
    assert "broken: 01_b: DeadKernelError: the kernel died" in text


def test_a_claim_on_a_task_that_the_data_lack_is_not_testable(
    tmp_path_factory: pytest.TempPathFactory, llava_path: Path, worlds: Path
) -> None:
    """Said at the start, no notebook is run for it; data that have it are measured again."""
    notebooks = tmp_path_factory.mktemp("notebooks")
    out = notebooks / "out"
    file = notebooks / "01_image_tokens_stabilise.ipynb"
    name = "/".join(llava_path.parts[-2:])
    record = RECORD.replace("01_second", file.stem).replace('"model": model', f'"model": "{name}"')
    write(file, OPEN, record)
    table = worlds / "caption.parquet"
    (worlds / "vqa.parquet").rename(table)
    status, _ = call(llava_path, notebooks, out, source=str(worlds))
    assert [entry["verdict"] for entry in read_claims(out)] == ["not supported"]
    assert (out / "notebooks" / file.name).exists()
    table.rename(worlds / "vqa.parquet")
    why = f"the data in {worlds} has no task 'caption' (it holds vqa, reason): give a source"
    for _ in range(2):
        status, text = call(llava_path, notebooks, out, source=str(worlds))
        assert status == 0
        assert "0 run, 1 not testable, 0 unchanged, 0 broken" in text
        assert text.index(f"not testable: C1: {why}") < text.index("\nclaim ")
        (entry,) = read_claims(out)
        assert (entry["claim"], entry["model"], entry["verdict"]) == ("C1", name, "not testable")
        assert entry["reason"].startswith(why)
        assert not (out / "notebooks" / file.name).exists()
    assert why[1:] in (out / "report.html").read_text().replace("&#39;", "'")
    (worlds / "vqa.parquet").rename(table)
    status, text = call(llava_path, notebooks, out, source=str(worlds))
    assert status == 0 and "1 run, 0 unchanged" in text
    assert f"the data in {worlds} changed" in text
    assert [entry["verdict"] for entry in read_claims(out)] == ["not supported"]


def test_data_that_are_not_there_end_it_before_anything_runs(
    tmp_path: Path, llava_path: Path
) -> None:
    write(tmp_path / "00_a.ipynb", "print('hello')")
    with pytest.raises(FileNotFoundError, match="no data at 'data/nothing'"):
        call(llava_path, tmp_path, tmp_path / "out", source="data/nothing")
    assert not (tmp_path / "out").exists()


def test_paths_are_meant_from_where_the_command_is_given(
    tmp_path: Path, llava_path: Path, worlds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").symlink_to(llava_path)
    (tmp_path / "notebooks").mkdir()
    loads = "from visdepth_utils import load_task\nprint(len(load_task('vqa', 2, 0, source)))"
    write(tmp_path / "notebooks" / "00_first.ipynb", OPEN, loads)
    write(tmp_path / "notebooks" / "01_second.ipynb", "print('at the same time')")
    monkeypatch.chdir(tmp_path)
    chosen = {"model": "mine", "source": "."}  # ``worlds`` fills tmp_path
    stream = io.StringIO()
    out = Path(f"../{tmp_path.name}-run")
    status = reproduce(chosen, out, Path("notebooks"), stream, jobs=2)
    assert status == 0, stream.getvalue()
    assert "[2]    at the same time" in stream.getvalue()
    facts = read_provenance(out.resolve())
    assert facts["settings"]["model"] == str(tmp_path / "mine")
    assert facts["data"]["source"] == str(tmp_path)


def test_refresh_stores_outputs_in_place(tmp_path: Path) -> None:
    file = write(tmp_path / "00_a.ipynb", "print('kept')")
    assert refresh_all([file], io.StringIO()) == 0
    once = file.read_text()
    notebook = nbformat.reads(once, as_version=4)
    assert notebook.cells[2].outputs[0].text == "kept\n"
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2]
    assert notebook.metadata.kernelspec.display_name == "Python 3"
    refresh_all([file], io.StringIO())
    assert file.read_text() == once  # no times, no machine


@pytest.mark.parametrize(
    ("seconds", "threads", "took"),
    [
        (9, 2, "seconds on 2 CPU cores"),
        (31, 1, "half a minute on 1 CPU core"),
        (62, 2, "a minute on 2 CPU cores"),
        (130, 2, "2 minutes on 2 CPU cores"),
        (151, 4, "2.5 minutes on 4 CPU cores"),
    ],
)
def test_the_time_in_a_notebook_is_that_of_its_run(seconds: float, threads: int, took: str) -> None:
    text = "a\n\n**Time and memory:** {} when its outputs were stored, and 1 GB."
    cells = [nbformat.v4.new_markdown_cell(text.format("an hour")), nbformat.v4.new_code_cell("1")]
    book = nbformat.v4.new_notebook(cells=cells)
    execute.tell_time(book, seconds, threads)
    assert book.cells[0].source == text.format(took)
    assert book.metadata["took"] == took
    silent = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("no word of time")])
    execute.tell_time(silent, seconds, threads)
    assert "took" not in silent.metadata


@pytest.mark.parametrize(
    ("cell", "message"),
    [("1 / 0", "ZeroDivisionError"), ("import sys\nprint('w', file=sys.stderr)", "stderr: w")],
)
def test_refresh_leaves_a_broken_notebook_as_it_was(
    tmp_path: Path, cell: str, message: str
) -> None:
    file = write(tmp_path / "00_a.ipynb", cell)
    before = file.read_text()
    stream = io.StringIO()
    assert refresh_all([file], stream) == 1
    assert message in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1
    assert file.read_text() == before


def test_errors_that_are_not_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_dispatch", lambda argv: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        command.main([])


def test_an_interrupt_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_dispatch", stop)
    assert command.main([]) == 130
    assert "run it again to go on" in capsys.readouterr().err


def test_notebooks_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("10_c.ipynb", "02_b.ipynb", "00_a.ipynb", "scratch.ipynb"):
        (tmp_path / name).write_text("{}")
    found = [file.stem for file in ordered_notebooks(tmp_path)]
    assert found == ["00_a", "02_b", "10_c"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_output_is_rewritten_in_place_only_in_a_terminal() -> None:
    for stream, expected in (
        (io.StringIO(), "  a\n  1/2\n  2/2\n  b\n"),
        (Terminal(), "  a\n\r\x1b[K  1/2\r\x1b[K  2/2\n  b\n"),
    ):
        live = Indented(stream, "  ")
        for piece in ("a\n", "\r1/", "2", "\r2/2", "\nb"):
            live.write(piece)
        live.end()
        assert stream.getvalue() == expected


@pytest.mark.parametrize(
    ("effect", "interval", "text"),
    [
        (0.12345, [0.1, None], "0.123 [0.1, -]"),
        (None, None, "-"),
        (3, [1, 5], "3 [1, 5]"),
        (1e-9, None, "0.000"),
        (0.0274, [0.0, 0.16449], "0.027 [0, 0.164]"),
    ],
)
def test_effects_are_rounded_and_gaps_are_dashes(
    effect: object, interval: object, text: str
) -> None:
    assert effect_text(effect, interval) == text
