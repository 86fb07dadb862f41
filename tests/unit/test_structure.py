"""The package's layers: what measures stands on nothing that judges, shows or runs notebooks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import visdepth_utils
from visdepth_utils.store.measuring_code import NOT_MEASURING

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
