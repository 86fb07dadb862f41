"""The package's layers: what measures stands on nothing that judges, shows or runs notebooks."""

import ast
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

import visdepth_utils
from visdepth_utils.runs.measuring_code import NOT_MEASURING

HOME = Path(visdepth_utils.__file__).parent
JUDGES_OR_SHOWS = {"calibration", "claims", "plots", "preflight", "report", "rules", "verdicts"}
MODULES = sorted(HOME.rglob("*.py"))


def imports(file: Path, everywhere: bool) -> Iterator[str]:
    """Our modules that a file imports, ``a.b`` for visdepth_utils.a.b; without those for types.

    Args:
        file: The source.
        everywhere: Also those inside functions, which are loaded when called.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if everywhere else tree.body
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and id(node) not in typing:
            home, _, inside = (node.module or "").partition(".")
            if home == "visdepth_utils":
                for alias in node.names:
                    deeper = (HOME / inside.replace(".", "/") / f"{alias.name}.py").exists()
                    yield ".".join(filter(None, (inside, alias.name if deeper else "")))


def measures(file: Path) -> bool:
    """Whether a change of this file has tables measured again."""
    return file.relative_to(HOME).with_suffix("").parts[0] not in NOT_MEASURING


@pytest.mark.parametrize("file", [f for f in MODULES if measures(f)], ids=lambda f: f.stem)
def test_what_measures_stands_on_nothing_that_judges_or_shows(file: Path) -> None:
    found = {name.split(".")[0] for name in imports(file, everywhere=True)}
    assert not found & JUDGES_OR_SHOWS


def test_modules_load_in_layers_without_a_circle() -> None:
    names = {
        ".".join(file.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): file
        for file in MODULES
    }
    left = {name: set(imports(file, everywhere=False)) & set(names) for name, file in names.items()}
    assert sum(map(len, left.values())) > 200  # the arrows were seen at all
    while left:
        free = {name for name, needs in left.items() if not needs & set(left)}
        assert free, f"these import one another: {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


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
    for block in re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL):
        yield "README.md", block
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
    assert {"preflight/pilot.py", "Makefile", "README.md", "01_image_tokens_stabilise.ipynb"} <= {
        place for place, _ in found
    }
    assert {place: gone for place, node in found for gone in lacking([node])} == {}


def test_a_name_that_moved_would_be_noticed() -> None:
    moved = code_in_text("import psutil\nfrom visdepth_utils.plots import depth_curves\nprint(1)")
    assert list(lacking(moved)) == ["No module named 'visdepth_utils.plots.depth_curves'"]
    assert list(lacking(code_in_text("import visdepth_utils.gone"))) != []
    assert code_in_text("Refuse what does not fit.") == []
