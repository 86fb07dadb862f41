"""The end of a run: the verdict table on the screen, and report.html that opens anywhere."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from visdepth_utils.files import write_text
from visdepth_utils.runs import read_claims, read_provenance
from visdepth_utils.verdicts import COLOURS

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MAX_SVG = 2_000_000  # bytes; a figure with more is shown as PNG


def verdict_rows(folder: Path) -> list[dict[str, str]]:
    """The verdicts of a run, as text ready to be shown.

    Args:
        folder: Of the run.

    Returns:
        One dictionary per verdict: ``claim``, ``verdict``, ``effect`` (with interval) and
        ``effect_label`` (what it is), ``control`` and ``control_label``, ``images``, ``model``,
        ``statement``, ``reason``, ``notebook``, ``colour``.
    """
    return [
        {
            "claim": str(entry["claim"]),
            "verdict": str(entry["verdict"]),
            "effect": _effect(entry.get("effect"), entry.get("ci")),
            "effect_label": str(entry.get("effect_label") or ""),
            "control": _number(entry.get("control_effect")),
            "control_label": str(entry.get("control_label") or ""),
            "images": _number(entry.get("n_images")),
            "model": str(entry["model"]),
            "statement": str(entry.get("statement") or ""),
            "reason": str(entry.get("reason") or ""),
            "notebook": Path(str(entry.get("notebook") or "")).stem,
            "colour": COLOURS.get(str(entry["verdict"]), "#555555"),
        }
        for entry in read_claims(folder)
    ]


def verdict_text(folder: Path, broken: Mapping[str, str] | None = None) -> str:
    """The verdict table in plain text.

    Args:
        folder: Of the run.
        broken: Notebook to error, for the line that says why verdicts may be missing.

    Returns:
        Several lines, columns aligned.
    """
    rows = verdict_rows(folder)
    if not rows:
        missing = " (a notebook broke, see below)" if broken else ""
        return f"no verdicts recorded in {folder.name}{missing}"
    columns = {
        "claim": "claim",
        "verdict": "verdict",
        "effect": "effect [95% interval]",
        "control": "control",
        "images": "images",
        "model": "model",
        "effect_label": "effect is",
    }
    widths = {
        key: max(len(head), *(len(row[key]) for row in rows)) for key, head in columns.items()
    }
    table = [columns, {key: "-" * width for key, width in widths.items()}, *rows]
    return "\n".join(
        "  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip() for row in table
    )


def write_report(
    folder: Path, notebooks: Sequence[str], broken: Mapping[str, str] | None = None
) -> Path:
    """Write report.html: verdicts first, then figures, notebooks, and where all of it comes from.

    Args:
        folder: Of the run.
        notebooks: Names without ending, in order.
        broken: Notebook to error.

    Returns:
        The file. It holds its pictures and needs no network; executed notebooks lie beside it.
    """
    links = {name: link for name in notebooks if (link := _notebook_page(folder, name))}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        run=folder.name,
        verdicts=verdict_rows(folder),
        figures=_figures(folder / "figures"),
        notebooks=notebooks,
        links=links,
        broken=broken or {},
        provenance=list(_flat(read_provenance(folder))),
    )
    target = folder / "report.html"
    write_text(target, page)
    return target


def _notebook_page(folder: Path, name: str) -> str | None:
    """Link to an executed notebook, as HTML where nbconvert (it comes with JupyterLab) is there."""
    source = folder / "notebooks" / f"{name}.ipynb"
    if not source.exists():
        return None
    target = source.with_suffix(".html")
    if not target.exists() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
        try:
            from nbconvert import HTMLExporter
        except ImportError:
            return f"notebooks/{source.name}"
        html, _ = HTMLExporter().from_filename(str(source))
        write_text(target, html)
    return f"notebooks/{target.name}"


def _figures(folder: Path) -> list[dict[str, str]]:
    """Figures as data URIs, sharp SVG where it is small enough."""
    figures = []
    for png in sorted(folder.glob("*.png")):
        svg = png.with_suffix(".svg")
        small = svg.exists() and svg.stat().st_size <= _MAX_SVG
        file, kind = (svg, "svg+xml") if small else (png, "png")
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        title = png.stem.replace("_", " ")
        figures.append({"title": title, "uri": f"data:image/{kind};base64,{data}"})
    return figures


def _flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested entries as (path, text) rows."""
    if not isinstance(value, dict):
        return [(path, "-" if value is None else str(value))]
    return [
        row
        for name, item in value.items()
        for row in _flat(item, f"{path} / {name}" if path else str(name))
    ]


def _effect(effect: Any, interval: Any) -> str:
    """Effect with its interval, or a dash."""
    if _number(effect) == "-":
        return "-"
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return _number(effect)
    return f"{_number(effect)} [{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: Any) -> str:
    """Three significant digits; a dash for what was not measured; anything else as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)
