"""Figures of a run as the report shows them: in the notebooks' order, with what is said there."""

import base64
import re
from pathlib import Path

from visdepth_utils.common.cells import read_notebook
from visdepth_utils.report.pages import LINK

_MAX_SVG = 300_000  # bytes; a figure with more is shown as PNG
_FIGURE = re.compile(r"""\.figure\([^"']*["']([^"']+)["']""")
_SECTION = re.compile(r"^## *(?:\d+\. *)?(.+)$", re.MULTILINE)
_HOW = re.compile(r"\*\*How to read it\.\*\* *(.+?)(?:\n\s*\n|\Z)", re.DOTALL)


def run_figures(folder: Path) -> list[dict[str, str]]:
    """Every figure of a run, in the order in which the notebooks draw them.

    Each has ``name``, ``title`` and ``how`` (heading of the section it stands in, and how the
    notebook says to read it; of a figure that no notebook of the run draws the title is its name
    and ``how`` is empty), and ``uri``, sharp SVG where it is small enough.
    """
    said: dict[str, tuple[str, str]] = {}
    for notebook in sorted((folder / "notebooks").glob("*.ipynb")):
        said |= notebook_figures(notebook)
    place = {name: i for i, name in enumerate(said)}
    files = sorted(
        (folder / "figures").glob("*.png"),
        key=lambda png: (png.stem[:2], place.get(png.stem, len(place)), png.stem),
    )
    figures = []
    for png in files:
        svg = png.with_suffix(".svg")
        small = svg.exists() and svg.stat().st_size <= _MAX_SVG
        file, kind = (svg, "svg+xml") if small else (png, "png")
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        title, how = said.get(png.stem, (_words(png.stem), ""))
        uri = f"data:image/{kind};base64,{data}"
        figures.append({"name": png.stem, "title": title, "how": how, "uri": uri})
    return figures


def notebook_figures(notebook: Path) -> dict[str, tuple[str, str]]:
    """Name of each figure that a notebook draws -> heading of its section, and how to read it.

    The latter is said once per section. A damaged notebook says nothing.
    """
    try:
        cells = read_notebook(notebook).cells
    except (OSError, ValueError):  # notebook_page names it, where the page of it is to be written
        return {}
    sections: list[tuple[str, list[str], str]] = [("", [], "")]
    for cell in cells:
        if cell.cell_type == "markdown":
            if heading := _SECTION.search(cell.source):
                sections.append((_plain(heading[1]), [], ""))
            if how := _HOW.search(cell.source):
                sections[-1] = (*sections[-1][:2], _plain(how[1]))
        elif cell.cell_type == "code":
            sections[-1][1].extend(_FIGURE.findall(cell.source))
    found = {}
    for heading, names, how in sections:
        for i, name in enumerate(names):
            title = f"{heading}: {_words(name)}" if heading and i else heading or _words(name)
            found[name] = (title, "" if i else how)
    return found


def _words(name: str) -> str:
    """``"04_token_divergence"`` as words."""
    return re.sub(r"^\d\d_", "", name).replace("_", " ")


def _plain(text: str) -> str:
    """Markdown as one line of plain text."""
    return " ".join(re.sub(r"[*`]", "", LINK.sub(r"\2", text)).split())
