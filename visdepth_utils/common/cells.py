"""What source code and a notebook's file say, without running them."""

import ast
import threading
from pathlib import Path
from typing import Any

import nbformat

from visdepth_utils.common.errors import named_line

_PARSING = threading.Lock()


def parsed(code: str) -> ast.Module:
    """Python as a tree, by one thread at a time.

    Before CPython 3.12 all threads share the counter that ``ast.parse`` watches its recursion by:
    two at once can end in a ``SystemError`` (python/cpython issue 106905).
    """
    with _PARSING:
        return ast.parse(code)


def assigned(code: str) -> dict[str, Any]:
    """What a cell assigns at its top level: name -> value in order, None if no literal."""
    found: dict[str, Any] = {}
    for node in parsed(code).body:
        for name in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(name, ast.Name):
                try:
                    found[name.id] = ast.literal_eval(node.value)
                except ValueError:
                    found[name.id] = None
    return found


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook as format 4, or say in one line that it is none (ValueError)."""
    try:
        return nbformat.read(path, as_version=4)
    except OSError:
        raise
    except Exception as error:  # half a file fails in nbformat in many ways
        why = named_line(error, 200)
        raise ValueError(
            f"notebook {path} is not readable ({why}): restore it, or take it away"
        ) from error


def default_parameters(source: Path) -> dict[str, Any]:
    """What a notebook's ``parameters`` cell declares: name -> default, None if no literal.

    Empty if no cell has that tag. ValueError: a notebook that cannot be read, or a cell that is no
    Python.
    """
    cells = [
        cell.source
        for cell in read_notebook(source).cells
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", [])
    ]
    try:
        return {name: value for cell in cells for name, value in assigned(cell).items()}
    except SyntaxError as error:
        raise ValueError(
            f"notebook {source}: its cell tagged 'parameters' is no plain Python ({error}): leave "
            "only assignments in it"
        ) from error


def tags(source: Path) -> set[str]:
    """All tags of a notebook's cells."""
    return {tag for cell in read_notebook(source).cells for tag in cell.metadata.get("tags", [])}
