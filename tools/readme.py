"""The parts of README.md and docs/verdicts.md that are results, written from a run.

Answer, verdicts in short and figure in the one, the table in full in the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from visdepth_utils.claims.c0 import title_answer
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.common.files import REPO, atomic, write_text
from visdepth_utils.report.verdict_table import control_words, images_text, label_text, plain_words
from visdepth_utils.runs.records import RECORDED, read_claims, two_models
from visdepth_utils.runs.registration import in_force

__all__ = ["FIGURE", "FULL", "PICTURE", "START", "STOP", "markdown_table", "short_table"]
__all__ += ["update_readme"]

START = "<!-- verdicts: written by `make readme` -->"
STOP = "<!-- end of verdicts -->"
FIGURE = "09_read_or_process"
PICTURE = Path("docs") / "read_or_process.png"
FULL = Path("docs") / "verdicts.md"
PRETRAINED = "minivlm/smol"
"""Its decoder was a language model first: what it changes is said above the table."""
_WIDTH = 1000  # pixels


def update_readme(
    folder: Path, readme: Path = REPO / "README.md", recorded: Path = RECORDED
) -> list[Path]:
    """Write a run's verdicts between the marks of the README and of FULL, and its figure.

    Args:
        folder: Of the run.
        readme: The file.
        recorded: Runs on other models; their verdicts by the rules in force stand beside.

    Returns:
        The files written.

    Raises:
        ValueError: If the marks are missing, or the run holds no verdict or several models, or its
            figure is damaged.
        FileNotFoundError: If the run has no such figure.
    """
    pages = [readme, readme.parent / FULL]
    around = [_around(page) for page in pages]
    figure = folder / "figures" / f"{FIGURE}.png"
    if not figure.is_file():
        raise FileNotFoundError(f"no figure {figure}: run notebook {FIGURE[:2]} first")
    entries = read_claims(folder)
    models = {entry["model"] for entry in entries}
    others = [
        entry
        for path in sorted(recorded.glob("*/claims.json"))
        for entry in read_claims(path.parent)
        if entry["model"] not in models and entry.get("rules") == in_force()
    ]
    answers = {
        entry["model"]: title_answer(entry)
        for entry in (*entries, *others)
        if entry["claim"] == "C0"
    }
    brief = [text for model, text in answers.items() if model in {*models, PRETRAINED}]
    tables = [short_table(entries, others), markdown_table(entries, others)]
    verdicts = pd.DataFrame([*entries, *others])
    compared = two_models(verdicts, *models, PRETRAINED)
    if compared:
        compared = f"**Does the pattern come with language pretraining?** {compared}"
    shown = [_told(some, compared) for some in (brief, list(answers.values()))]
    target = readme.parent / PICTURE
    try:
        with Image.open(figure) as image:
            small = image.convert("RGB")
    except OSError as error:
        raise ValueError(
            f"{figure} is no readable picture: run notebook {FIGURE[:2]} again"
        ) from error
    small.thumbnail((_WIDTH, _WIDTH), Image.Resampling.LANCZOS)
    with atomic(target) as temporary:
        # A palette makes a plot several times smaller; this one keeps the colours of thin curves.
        palette = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(temporary, "png", optimize=True)
    for page, (head, tail), told, table in zip(pages, around, shown, tables, strict=True):
        block = "\n\n".join([*told, table])
        write_text(page, f"{head}{START}\n\n{block}\n\n{STOP}{tail}")
    return [*pages, target]


def _told(answers: list[str], compared: str) -> list[str]:
    """What stands above a table: the question and its answers, then the comparison."""
    if answers:
        answers = [f"**Must image tokens be processed, or only read?** {answers[0]}", *answers[1:]]
    return [*answers, compared] if compared else answers


def _around(page: Path) -> tuple[str, str]:
    """What stands before and behind the two marks of a page."""
    head, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, stop, tail = rest.partition(STOP)
    if not (start and stop):
        raise ValueError(f"{page.name} lacks the lines {START} and {STOP}: put them back")
    return head, tail


def short_table(
    entries: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Verdicts of one model in few words, those of each other model in a column.

    Args:
        entries: Of claims.json.
        others: Of other models.

    Returns:
        The table in Markdown.
    """
    titles = {name: claim["title"] for name, claim in load_claims()["claims"].items()}
    models = sorted({str(other["model"]) for other in others})
    words = {(other["claim"], other["model"]): label_text(other) for other in others}
    heads = ["claim", "as published", "our verdict", "effect [95% interval]", "analyses that agree"]
    lines = [[*heads, *(f"on `{model}`" for model in models)]]
    for entry in entries:
        known = entry.get("robustness") or {}
        agree = str(known.get("line", "")).removeprefix("holds in ").partition(" analyses")[0]
        lines.append(
            [
                f"{entry['claim']} {titles.get(entry['claim'], '')}",
                plain_words(entry)["plain"],
                f"**{label_text(entry)}**",
                _number(entry.get("effect")) + _interval(entry.get("ci")),
                agree or "-",
                *(words.get((entry["claim"], model), "-") for model in models),
            ]
        )
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


def markdown_table(
    entries: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Verdicts of one model as a table in Markdown, those of others in a column.

    Args:
        entries: Of claims.json.
        others: Of other models; without any there is no such column.

    Returns:
        The table, numbers with two decimals as a notebook shows them.

    Raises:
        ValueError: If there is no entry, or there are several models.
    """
    models = {entry["model"] for entry in entries}
    if len(models) != 1:
        raise ValueError(f"the table is about one model: claims.json holds {len(models)}")
    titles = {name: claim["title"] for name, claim in load_claims()["claims"].items()}
    lines = [
        f"| claim | plain reading | verdict on `{models.pop()}` | effect [95% interval] | control "
        "| images |" + (" other models |" if others else ""),
        "|---|---|---|---|---|---|" + ("---|" if others else ""),
    ]
    beside: dict[str, list[str]] = {}
    for other in others:
        word = f"`{other['model']}`: **{label_text(other)}**"
        number = _number(other.get("effect")) + _interval(other.get("ci"))
        beside.setdefault(other["claim"], []).append(f"{word}, {number}")
    for entry in entries:
        name, note = control_words(entry)
        agree = (entry.get("robustness") or {}).get("line")
        cells = (
            f"{entry['claim']} {titles.get(entry['claim'], '')}",
            plain_words(entry)["plain"],
            _join(f"**{label_text(entry)}**: {entry.get('reason') or '-'}", agree),
            _join(
                _number(entry.get("effect")) + _interval(entry.get("ci")), entry.get("effect_label")
            ),
            _join(f"{_number(entry.get('control_effect'))} {name}".strip(), note),
            images_text(entry),
            *(["; ".join(beside.get(entry["claim"], ["-"]))] if others else []),
        )
        lines.append("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    """Two decimals."""
    return "not measured" if value is None else f"{value:.2f}"


def _interval(bounds: Sequence[float | None] | None) -> str:
    """Two bounds, or nothing where they were not reached."""
    return "" if not bounds or None in bounds else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"


def _join(value: str, note: str | None) -> str:
    """A value and what it is."""
    return f"{value} ({note})" if note else value
