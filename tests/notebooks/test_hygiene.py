"""Every committed notebook is short, clean, executed, and its checks are not vacuous."""

import ast
import contextlib
import copy
import html
import itertools
import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.address import PLACEHOLDER, badge, colab_line, repository
from visdepth_utils.notebooks.reproduce import ordered_notebooks

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = ordered_notebooks(FOLDER)

CHECK = "nbval-check-output"
REPO = repository()
INSTALL = "!cd visdepth && {sys.executable} -P visdepth_utils/notebooks/colab.py"
PARAMETERS = ["model", "source", "n_samples", "seed", "device", "dtype", "profile", "out_dir"]
MAX_BYTES, MAX_LINES, MAX_CELL_LINES, CELLS = 300_000, 120, 25, range(12, 26)


def code_lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def problems(book: nbformat.NotebookNode, name: str) -> list[str]:
    """Everything wrong with a notebook, in words; empty if all is well."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    found = layout(book, code, name) + outputs(book, code)
    return found


def layout(book, code, name):
    """What can be said without looking at outputs."""
    found = []
    if len(book.cells) not in CELLS:
        found.append(f"{len(book.cells)} cells, {CELLS.start} to {CELLS.stop - 1} wanted")
    if (total := sum(len(code_lines(cell)) for cell in code)) > MAX_LINES:
        found.append(f"{total} lines of code, at most {MAX_LINES} wanted")
    if (longest := max(len(cell.source.splitlines()) for cell in code)) > MAX_CELL_LINES:
        found.append(f"a cell of {longest} lines, at most {MAX_CELL_LINES} wanted")
    kernel = book.metadata.get("kernelspec", {})
    if (kernel.get("name"), kernel.get("display_name")) != ("python3", "Python 3"):
        found.append(f"kernel {dict(kernel)}")
    if "widgets" in book.metadata:
        found.append("widgets in the metadata")
    if badge(REPO, name) != book.cells[0].source:
        found.append("no Colab badge for this notebook in the first cell")
    colab = [cell for cell in code if "google.colab" in cell.source]
    guarded = "\nif " in colab[0].source and INSTALL in colab[0].source if colab else False
    if len(colab) != 1 or colab_line(REPO) not in colab[0].source or not guarded:
        found.append("no guarded Colab cell with the one repository address")
    if not any(re.search(r"\*\*Next:\*\*", cell.source) for cell in book.cells[-2:]):
        found.append("no pointer to the next notebook at the end")
    if not any("does not show" in cell.source for cell in book.cells[-2:]):
        found.append("no word on what this does not show")
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    found += parameters(tagged)
    return found


def parameters(tagged):
    """One parameters cell: the agreed names, literals only."""
    if len(tagged) != 1:
        return [f"{len(tagged)} cells tagged parameters"]
    body = ast.parse(tagged[0].source).body
    names = [node.targets[0].id for node in body if isinstance(node, ast.Assign)]
    found = []
    if names != PARAMETERS or len(body) != len(PARAMETERS):
        found.append(f"parameters {names}, {PARAMETERS} wanted")
    if not all(isinstance(getattr(node, "value", None), ast.Constant) for node in body):
        found.append("a parameter that is no literal")
    return found


def outputs(book, code):
    """Executed from top to bottom, nothing on stderr, and checks that compare something."""
    found = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append(f"execution counts {[cell.execution_count for cell in code]}")
    for i, cell in enumerate(code, 1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"code cell {i} ended in {output.ename}")
            if output.get("name") == "stderr":
                found.append(f"code cell {i} printed on stderr")
            if any("widget" in kind for kind in output.get("data", {})):
                found.append(f"code cell {i} shows a widget")
    checked = [cell for cell in code if CHECK in cell.metadata.get("tags", [])]
    telling = [cell for cell in checked if cell.execution_count and printed(cell).strip()]
    if len(telling) < 3:
        found.append(f"{len(telling)} checked cells that ran and printed text, at least 3 wanted")
    if len(telling) < len(checked):
        found.append("a checked cell that never ran or printed nothing")
    # A home, a temporary folder, any absolute path of three or more parts, an object's address.
    path = r"(?:^|[\s'\"(=])/[\w.-]+/[\w.-]+/[\w.-]+"
    machine = re.compile(rf"(/home/|/root/|/tmp/|/Users/|{path}|0x[0-9a-f]{{6,}})")
    if machine.search(json.dumps([cell.get("outputs", []) for cell in code])):
        found.append("an output with a path or address of one machine")
    return found


def printed(cell):
    """What a cell printed, and what it showed as a table or a verdict; not a figure."""
    shown = [o.get("data", {}) for o in cell.outputs if o.output_type != "stream"]
    texts = [data.get("text/plain", "") for data in shown if "image/png" not in data]
    return "".join([o.get("text", "") for o in cell.outputs] + texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_clean(path):
    assert path.stat().st_size < MAX_BYTES
    assert problems(nbformat.read(path, as_version=4), path.name) == []


def imported(source: str) -> set[str]:
    """Top-level names that a source imports, ours left out; lines for the shell do not count."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("!", "%"))]
    try:
        nodes = list(ast.walk(ast.parse("\n".join(lines))))
    except SyntaxError:  # a block of shell lines only
        return set()
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in names}
    return tops - sys.stdlib_module_names - {"visdepth_utils"}


def brought_by(requirements: list[str]) -> set[str]:
    """Names of all distributions that pip installs for these, by what is installed here."""
    found, todo = set(), [Requirement(line) for line in requirements]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):
            todo += [Requirement(line) for line in metadata.requires(name) or ()]
    return found


def test_what_is_imported_comes_with_the_dependencies():
    """Colab installs the dependencies in pyproject.toml: they must bring all that is imported."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    optional = {"nbconvert", "ray"}  # imported where they are installed; extras bring them
    brought = brought_by(project["dependencies"])
    package = [file.read_text() for file in (FOLDER.parent / "visdepth_utils").rglob("*.py")]
    books = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    cells = [cell.source for book in books for cell in book.cells if cell.cell_type == "code"]
    names = set().union(*map(imported, [*package, *cells]))
    assert {"torch", "peft", "IPython", "pandas"} <= names
    owners = metadata.packages_distributions()
    lacking = {
        name
        for name in names - optional
        if not {canonicalize_name(owner) for owner in owners.get(name, ())} & brought
    }
    assert lacking == set()


def test_every_notebook_is_in_the_ordered_set():
    everything = {
        path.name for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in str(path)
    }
    assert everything == {path.name for path in NOTEBOOKS}
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers == sorted(set(numbers))  # a number is a claim's; not every claim has its yet
    assert numbers[0] == 0


def test_each_notebook_leads_to_the_next_one():
    for path, following in zip(NOTEBOOKS, [*NOTEBOOKS[1:], NOTEBOOKS[0]], strict=True):
        last = nbformat.read(path, as_version=4).cells[-1].source
        links = re.findall(r"\((\d\d_\w+\.ipynb)\)", last.partition("**Next:**")[2])
        assert links == [following.name], f"{path.name} leads to {links}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_link_and_named_notebook_is_there(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert "not written yet" not in cell.source
            for link in re.findall(r"\]\((?!http)([^)#]+)\)", cell.source):
                assert (FOLDER / link).exists(), f"{path.name} links to {link}"


NO_COLUMN = {"full", "quick", "open_run", "make bench-gpu", "claims.json", "results/", "base"}
"""Words in code font beside a table that are no column: profiles, commands, files, a model."""


def unexplained(book):
    """Words in code font above tables that no table below them holds."""
    found = []
    for i, cell in enumerate(book.cells):
        if cell.cell_type != "markdown":
            continue
        below = itertools.takewhile(lambda c: c.cell_type == "code", book.cells[i + 1 :])
        shown = [o.get("data", {}).get("text/html", "") for c in below for o in c.outputs]
        tables = " ".join(text for text in shown if 'class="dataframe"' in text)
        held = {html.unescape(word) for word in re.findall(r"<t[hd][^>]*>([^<]*)</t", tables)}
        held |= {word.partition(" ")[0] for word in held}  # `z*` is "z* text" and "z* image"
        words = set(re.findall(r"`([^`]+)`", cell.source)) - NO_COLUMN
        found += sorted(words - held) if tables else []
    return [word for word in found if "/" not in word and "make reproduce" not in word]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_columns_that_prose_explains_are_in_the_table(path):
    book = nbformat.read(path, as_version=4)
    assert unexplained(book) == []
    for cell in book.cells:
        cell.source = cell.source.replace("`margin` is", "`bound` is")
    asked = any("`bound` is" in cell.source for cell in book.cells)
    assert unexplained(book) == ["bound"] * asked


def test_times_in_prose_are_those_of_the_run():
    """``execute.tell_time`` writes both; a time by hand is in no metadata."""
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        said = re.findall(r"\*\*Time and memory[.:]\*\* (.*?) when its outputs were stored", text)
        assert said == [book.metadata.get("took")], path.name


CLOCK = {"08_what_truncation_saves", "10_verdicts"}
"""Their verdicts may differ from run to run: a clock has a part in them."""


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_a_stored_verdict_is_compared_with_a_new_run(path):
    """Where a clock decides, the README holds it too (test_readme), and both forms must agree."""
    book = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in book.cells if "run.record(v)" in cell.source]
    assert (CHECK in cell.metadata.get("tags", [])) == (path.stem not in CLOCK)
    (shown,) = [o.data for o in cell.outputs if "text/html" in o.get("data", {})]
    told = re.findall(r"<t[hd][^>]*>([^<]*)</t", shown["text/html"])
    lines = shown["text/plain"].splitlines()
    claim, _, word = lines[0].partition(": ")
    assert html.unescape(" ".join(told)).split() == [
        *(claim, *word.lower().split()),
        *" ".join(lines[1:]).split(),
    ]


@pytest.mark.parametrize("path", NOTEBOOKS[:-1], ids=lambda path: path.stem)
def test_the_first_screen_says_what_was_asked_and_found(path):
    """Diagram and box come before what nobody needs to read, and tell the verdict at the end."""
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    (at,) = [i for i, cell in enumerate(code) if "run.opening(" in cell.source]
    diagram, box = (output.data for output in code[at].outputs)
    assert at == 2
    assert "image/png" in diagram
    for cell in (code[0], code[3]):
        assert "no need to read" in cell.source.partition("\n")[0]
        assert cell.metadata["jupyter"]["source_hidden"]
    if path == NOTEBOOKS[0]:
        return
    (last,) = [cell for cell in code if "run.record(v)" in cell.source]
    (verdict,) = [o.data["text/plain"] for o in last.outputs if "text/html" in o.get("data", {})]
    claim, _, word = verdict.splitlines()[0].partition(": ")
    told = {line[:10].strip(): line[10:] for line in verdict.splitlines()[1:]}
    shown = box["text/plain"].partition(f"{told['model']}: ")[2].splitlines()[0]
    reason = told["reason"]
    assert shown.startswith(f"{word.lower()}. {reason[0].upper()}{reason[1:]} ({told['images']} im")
    assert f"Corrected: {told['effect'].partition(' (')[0]}" in shown
    assert told["analyses"] in shown
    assert html.escape(shown.partition(". ")[2]) in box["text/html"]
    assert f'run.opening("{claim}")' in code[at].source


@pytest.fixture
def clean():
    """A notebook that passes, to be spoilt."""
    return nbformat.read(NOTEBOOKS[0], as_version=4)


def code_cells(book, tag=""):
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    return [cell for cell in cells if not tag or tag in cell.metadata.get("tags", [])]


def each(cells, name, value):
    for cell in cells:
        cell[name] = value(cell) if callable(value) else value


def add(book, kind, **content):
    code_cells(book)[0].outputs.append(nbformat.v4.new_output(kind, **content))


def replaced(old, new):
    return lambda cell: cell.source.replace(old, new)


LINE, FORK = colab_line(REPO), REPO + "-fork"
WIDGET = {"application/vnd.jupyter.widget-view+json": {}}
BADGE = badge(FORK, NOTEBOOKS[0].name)
SPOILS = {
    "never run": ("at least 3", lambda b: each(code_cells(b, CHECK), "execution_count", None)),
    "no output": ("at least 3 wanted", lambda b: each(code_cells(b, CHECK), "outputs", [])),
    "untagged": ("at least 3 wanted", lambda b: each(code_cells(b, CHECK), "metadata", {})),
    "computed parameter": (
        "no literal",
        lambda b: each(code_cells(b, "parameters"), "source", replaced("seed = 0", "seed = int()")),
    ),
    "long cell": ("a cell of", lambda b: each(code_cells(b)[:1], "source", "x = 1\n" * 30)),
    "stderr": ("stderr", lambda b: add(b, "stream", name="stderr", text="careful")),
    "failed": ("ended in E", lambda b: add(b, "error", ename="E", evalue="x", traceback=[])),
    "widget": ("widget", lambda b: add(b, "display_data", data=WIDGET)),
    "kernel": ("kernel", lambda b: b.metadata["kernelspec"].update(display_name=".venv")),
    "address": (
        "repository address",
        lambda b: each(b.cells, "source", replaced(LINE, colab_line(FORK))),
    ),
    "badge": ("no Colab badge", lambda b: each(b.cells[:1], "source", BADGE)),
    "out of order": (
        "execution counts",
        lambda b: each(code_cells(b)[:2], "execution_count", lambda c: 3 - c.execution_count),
    ),
    "home": ("one machine", lambda b: add(b, "stream", name="stdout", text="/home/someone/x")),
    "too short": ("8 cells", lambda b: b.update(cells=b.cells[:8])),
}
if REPO == PLACEHOLDER:
    shown = BADGE.replace("-fork", "")
    SPOILS["shown badge"] = ("no Colab badge", lambda b: each(b.cells[:1], "source", shown))


@pytest.mark.parametrize("name", SPOILS)
def test_the_checker_itself_can_fail(clean, name):
    message, spoil = SPOILS[name]
    before = problems(clean, NOTEBOOKS[0].name)
    spoilt = copy.deepcopy(clean)
    spoil(spoilt)
    new = set(problems(spoilt, NOTEBOOKS[0].name)) - set(before)
    assert any(message in problem for problem in new)
