"""What was found on a claim: the box at the top of its notebook, from verdicts that are kept."""

import html
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from visdepth_utils.claims.registry import load_claims
from visdepth_utils.claims.verdict import COLOURS, headline
from visdepth_utils.runs.records import RECORDED, read_claims
from visdepth_utils.runs.registration import in_force

__all__ = ["Found", "agreement", "show_found", "show_opening", "what_was_found"]

NOTHING = (
    "Nothing yet: no run that is kept here was judged by the rules in force. "
    "Run the notebook to its end, and its verdict stands here."
)


@dataclass(frozen=True, repr=False)
class Found:
    """The verdicts on one claim, a model each, shown as a box; the run's own first.

    ``settings``: table of the run's settings as HTML, folded below; empty without one.
    """

    claim: str
    title: str
    entries: Sequence[Mapping[str, Any]]
    settings: str = ""

    def lines(self) -> list[tuple[str, str, str]]:
        """Model, verdict, and two sentences with the numbers, of each entry."""
        return [
            (
                str(entry["model"]),
                headline(str(entry["verdict"]), (entry.get("robustness") or {}).get("fragile")),
                _sentences(entry),
            )
            for entry in self.entries
        ]

    def __str__(self) -> str:
        """Plain text, a line for each model."""
        told = [f"{model}: {word}. {text}" for model, word, text in self.lines()]
        return "\n".join([f"What we found ({self.claim}, {self.title})", *(told or [NOTHING])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A box for notebooks; every value is escaped."""
        head = f"<b>What we found</b> ({html.escape(f'{self.claim}: {self.title}')})"
        told = [
            f"<code>{html.escape(model)}</code> "
            f'<b style="color:{COLOURS[str(entry["verdict"])]};background:#fff;padding:0 4px">'
            f"{html.escape(word)}</b>. {html.escape(text)}"
            for entry, (model, word, text) in zip(self.entries, self.lines(), strict=True)
        ]
        body = "".join(f'<p style="margin:6px 0">{line}</p>' for line in told or [NOTHING])
        folded = "<details><summary>Settings and versions: no need to read</summary>"
        folded = f"{folded}{self.settings}</details>" if self.settings else ""
        box = "border:1px solid #999;border-left:5px solid #8e2f7f;padding:8px 14px;max-width:60em"
        return f'<div style="{box}">{head}{body}{folded}</div>'


def what_was_found(
    claim: str, folder: Path | None = None, recorded: Path = RECORDED, settings: str = ""
) -> Found:
    """Collect the verdicts on a claim by the rules in force; the box says so where there is none.

    The run's own verdict, in ``folder``, comes first, then those of the runs in ``recorded``.
    ValueError if a claims.json is damaged.
    """
    title = load_claims()["claims"].get(claim, {}).get("title", "a claim of your own")
    rules = in_force()
    folders = [folder] if folder else []
    folders += sorted(file.parent for file in recorded.glob("*/claims.json"))
    found: dict[str, Mapping[str, Any]] = {}
    for place in folders:
        for entry in read_claims(place):
            if entry["claim"] == claim and entry.get("rules") == rules:
                found.setdefault(entry["model"], entry)
    return Found(claim, title, list(found.values()), settings)


def show_opening(kind: str, folder: Path, settings: pd.DataFrame) -> None:
    """Show the top of a notebook, see ``Run.opening``; nothing outside of one."""
    if (display := _display()) is None:
        return
    from visdepth_utils.plots.concept import concept

    display(concept(kind))
    if kind == "start":
        display(settings)
    else:
        show_found(kind, folder, settings)


def show_found(claim: str, folder: Path, settings: pd.DataFrame, update: bool = False) -> None:
    """Show what was found, or renew the box that stands at the top of this notebook."""
    if (display := _display()) is not None:
        box = what_was_found(claim, folder, settings=settings.to_html())
        display(box, display_id=f"what-was-found-{claim}", update=update)


def _display() -> Callable[..., Any] | None:
    """What shows something in a notebook; None where this is none."""
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return None
    from IPython.display import display

    return display


def agreement(entry: Mapping[str, Any]) -> str:
    """How many analyses agree with a verdict, as a sentence; empty where none were asked."""
    line = str((entry.get("robustness") or {}).get("line") or "")
    if not line:
        return ""
    return f"The verdict {line}." if line.startswith("holds") else f"{line[0].upper()}{line[1:]}."


def _sentences(entry: Mapping[str, Any]) -> str:
    """Why, then as published, corrected, and how many analyses agree."""
    plain = entry.get("plain") or {}
    parts = []
    if plain:
        number = _number(plain.get("effect"), [plain.get("lo"), plain.get("hi")])
        parts.append(f"As published: {plain['verdict']} ({number}).")
    label = f" ({entry['effect_label']})" if entry.get("effect_label") else ""
    name, _, note = str(entry.get("control_label") or "control").partition(", ")
    name = "control" if name == "control" else f"control, {name}"
    told = f" ({note})" if note else ""
    number = _number(entry.get("effect"), entry.get("ci"))
    parts.append(
        f"Corrected: {number}{label}; {name}: {_number(entry.get('control_effect'))}{told}."
    )
    parts += filter(None, [agreement(entry)])
    images = f" ({entry['n_images']} images)" if entry.get("n_images") else ""
    reason = str(entry.get("reason") or "no reason is kept")
    return " ".join([f"{reason[:1].upper()}{reason[1:]}{images}.", *parts])


def _number(value: float | None, bounds: Sequence[float | None] | None = None) -> str:
    """Two decimals and an interval; words where it was not measured."""
    if value is None:
        return "not measured"
    known = bounds and None not in bounds
    return f"{value:.2f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if known else "")
