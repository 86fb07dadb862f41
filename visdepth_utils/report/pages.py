"""Executed notebooks of a run as HTML pages that need no network and whose links hold."""

import re
import shutil
from pathlib import Path

from visdepth_utils.common.cells import read_notebook
from visdepth_utils.common.files import REPO, atomic, write_text

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
"""A link or picture of Markdown: ``!`` or nothing, its text, its address."""
_COLAB = "[![Open in Colab]"
# Where nbconvert's page would load scripts from. Our notebooks need none of them.
_SCRIPTS = ("require_js", "mathjax", "jquery", "mermaid_js", "widget_renderer")
_NO_SCRIPTS = {f"{name}_url": "" for name in _SCRIPTS}
_TAGS = re.compile(r'<script src=""></script>\s*|<script type="module">.*?</script>\s*', re.DOTALL)


def notebook_page(folder: Path, name: str) -> str | None:
    """Write the page of an executed notebook, if it is older than the notebook.

    Gives its address seen from the run's folder: HTML where nbconvert (it comes with JupyterLab) is
    there, else the notebook itself; None if that was not run.
    """
    source = folder / "notebooks" / f"{name}.ipynb"
    if not source.exists():
        return None
    target = source.with_suffix(".html")
    if not target.exists() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
        try:
            from nbconvert import HTMLExporter
        except ImportError:
            return f"notebooks/{source.name}"
        book = read_notebook(source)
        # The badge is a picture from the network, and says nothing about a run.
        book.cells = [cell for cell in book.cells if not cell.source.startswith(_COLAB)]
        for cell in book.cells:
            if cell.cell_type == "markdown":
                cell.source = LINK.sub(lambda found: _relink(found, folder), cell.source)
        exporter = HTMLExporter(exclude_anchor_links=True, **_NO_SCRIPTS)
        html, _ = exporter.from_notebook_node(book, {"metadata": {"name": name}})
        write_text(target, _TAGS.sub("", html))
    return f"notebooks/{target.name}"


def _relink(found: re.Match[str], folder: Path) -> str:
    """A link of a notebook as it holds in the run: to the page beside it, or to a copy."""
    picture, text, address = found.groups()
    if picture or "://" in address or address.startswith("#"):
        return found[0]
    path = Path(address)
    if path.suffix == ".ipynb":
        there = (folder / "notebooks" / path.name).exists()
        return f"[{text}]({path.with_suffix('.html').name})" if there else text
    original = (REPO / "notebooks" / address).resolve()
    if not (original.is_file() and original.is_relative_to(REPO)):
        return text
    copy = folder / original.relative_to(REPO)
    with atomic(copy) as temporary:
        shutil.copyfile(original, temporary)
    return found[0]
