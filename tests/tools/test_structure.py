"""The package's folders, one above the other, and code that stands in strings."""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import grimp
import nbformat

import visdepth_utils
from tools.house import GOALS, house

HOME = Path(visdepth_utils.__file__).parent
MODULES = sorted(HOME.rglob("*.py"))


def test_folders_import_from_those_below_only() -> None:
    """In a process of its own: the linter's console takes the standard output with it."""
    code = (
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=HOME.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_the_contract_sees_imports_inside_functions() -> None:
    graph = grimp.build_graph("visdepth_utils", exclude_type_checking_imports=True)
    assert "visdepth_utils.runs.ray_executor" in graph.find_modules_directly_imported_by(
        "visdepth_utils.runs.executor"
    )


def test_there_is_no_circle_and_few_imports_back_up() -> None:
    measured = house()
    assert measured["circles"] == GOALS["circles"]
    assert measured["imports back up"] <= GOALS["imports back up"]
    assert measured["levels"] > 5  # the imports were seen at all


def test_a_package_says_what_its_modules_are_for() -> None:
    for folder in sorted(file.parent for file in HOME.glob("*/__init__.py")):
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


# --- code that stands in strings, which no import of ours would miss ---


def code_in_text(text: str) -> list[ast.stmt]:
    """The imports of a piece of text, if it is Python; lines for the shell do not count."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("!", "%"))]
    try:
        nodes = ast.walk(ast.parse(textwrap.dedent("\n".join(lines))))
    except (SyntaxError, ValueError):
        return []
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def texts() -> Iterator[tuple[str, str]]:
    """Place and text of whatever may hold code: strings, the Makefile, README and notebooks."""
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield str(file.relative_to(HOME)), node.value
    root = HOME.parent
    made = (root / "Makefile").read_text()
    for module in re.findall(r"-m (visdepth_utils[.\w]*)", made):
        yield "Makefile", f"import {module}"
    for code in re.findall(r"-c '([^']*)'", made):
        yield "Makefile", code
    for page in ("README.md", "docs/python.md"):
        for block in re.findall(r"```python\n(.*?)```", (root / page).read_text(), re.DOTALL):
            yield page, block
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(file, as_version=4).cells:
            if cell.cell_type == "code":
                yield file.name, cell.source


def lacking(nodes: list[ast.stmt]) -> Iterator[str]:
    """What of some imports is not there."""
    for node in nodes:
        module = getattr(node, "module", None)
        for alias in node.names:
            try:
                if module:
                    home = import_module(module)
                    hasattr(home, alias.name) or import_module(f"{module}.{alias.name}")
                else:
                    import_module(alias.name)
            except ImportError as error:
                yield str(error)


def test_whatever_code_in_a_text_imports_is_there() -> None:
    found = [(place, node) for place, text in texts() for node in code_in_text(text)]
    assert {
        "runs/estimate.py",
        "Makefile",
        "README.md",
        "docs/python.md",
        "01_image_tokens_stabilise.ipynb",
    } <= {place for place, _ in found}
    assert {place: gone for place, node in found for gone in lacking([node])} == {}


def test_a_name_that_moved_would_be_noticed() -> None:
    moved = code_in_text("import psutil\nfrom visdepth_utils.plots import depth_curves\nprint(1)")
    assert list(lacking(moved)) == ["No module named 'visdepth_utils.plots.depth_curves'"]
    assert list(lacking(code_in_text("import visdepth_utils.gone"))) != []
    assert code_in_text("Refuse what does not fit.") == []
