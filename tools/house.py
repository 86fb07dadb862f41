"""How large the package is and how it stands: ``make house``.

Goals: at most 17,000 lines, 70 modules, 9 levels, 3 imports from a lower folder to a higher one, no
circle. Which folder is above which is the contract of import-linter in pyproject.toml.
"""

import tomllib
from graphlib import CycleError, TopologicalSorter

import grimp
from importlinter.cli import lint_imports

from visdepth_utils.common.files import REPO

__all__ = ["house", "main"]

PACKAGE = "visdepth_utils"
GOALS = {"lines": 17_000, "modules": 70, "levels": 9, "imports back up": 3, "circles": 0}


def house() -> dict[str, int]:
    """Measure the package.

    Returns:
        The entries of GOALS. ``levels``: modules on the longest chain of imports, those inside
        functions included; ``circles``: 1 if there is any, and then no levels (0).
    """
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True)
    needs = {m: set(graph.find_modules_directly_imported_by(m)) for m in graph.modules}
    files = sorted((REPO / PACKAGE).rglob("*.py"))
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [f"{PACKAGE}.{name}" for name in project["contracts"][0]["layers"]]
    place = {
        m: next((i for i, f in enumerate(layers) if f"{m}.".startswith(f"{f}.")), -1) for m in needs
    }
    up = [(a, b) for a, others in needs.items() for b in others if 0 <= place[b] < place[a]]
    levels, order = 0, TopologicalSorter(needs)
    try:
        order.prepare()
        while order.is_active():
            levels += 1
            order.done(*order.get_ready())
        circles = 0
    except CycleError:
        circles = 1
    return {
        "lines": sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files),
        "modules": sum(file.name != "__init__.py" for file in files),
        "levels": levels,
        "imports back up": len(up),
        "circles": circles,
    }


def main() -> int:
    """Print the measures beside their goals, then check the contracts.

    Returns:
        Exit status: 0 if the contracts are kept.
    """
    for name, value in house().items():
        goal = GOALS[name]
        print(f"{name:16} {value:6,}  (goal: {goal:,}{'' if value <= goal else ', not met'})")
    return lint_imports()


if __name__ == "__main__":
    raise SystemExit(main())
