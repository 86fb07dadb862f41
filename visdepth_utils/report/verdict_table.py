"""The verdicts of a run as rows of text, for the screen, the report and the README."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visdepth_utils.claims.verdict import COLOURS, headline
from visdepth_utils.runs.found import agreement
from visdepth_utils.runs.records import read_claims
from visdepth_utils.runs.registration import registered


def verdict_rows(folder: Path) -> list[dict[str, str]]:
    """The verdicts of a run, as text ready to be shown, a dictionary each.

    Keys: ``claim``, ``verdict``, ``label`` (verdict, and whether it is fragile), ``effect`` (with
    interval) and ``effect_label`` (what it is), ``control`` and ``control_label``, ``images`` (a
    dash where a verdict rests on none, as of other verdicts), ``source`` (of the data), ``model``,
    ``statement``, ``reason``, ``notebook``, ``colour``; ``plain`` (verdict of the plain reading)
    with ``plain_effect``, ``plain_colour`` and ``separates``, ``analyses`` (how many agree) and
    ``rules`` (their registration), each a dash where the entry has none; ``agreement`` (the same
    as a sentence, or empty).
    """
    return [
        {
            "claim": str(entry["claim"]),
            "verdict": str(entry["verdict"]),
            "label": label_text(entry),
            "effect": effect_text(entry.get("effect"), entry.get("ci")),
            "effect_label": str(entry.get("effect_label") or ""),
            "control": number_text(entry.get("control_effect")),
            "control_label": ", ".join(filter(None, control_words(entry))),
            "images": images_text(entry),
            "source": str(entry.get("source") or "-"),
            "model": str(entry["model"]),
            "statement": str(entry.get("statement") or ""),
            "reason": str(entry.get("reason") or ""),
            "notebook": Path(str(entry.get("notebook") or "")).stem,
            "colour": COLOURS.get(str(entry["verdict"]), "#555555"),
            **plain_words(entry),
            "analyses": str((entry.get("robustness") or {}).get("line") or "-"),
            "agreement": agreement(entry),
            "rules": registered(entry["rules"]) if entry.get("rules") else "-",
        }
        for entry in read_claims(folder)
    ]


def verdict_text(folder: Path, broken: Mapping[str, str] | None = None) -> str:
    """The verdict table in plain text, columns aligned.

    ``broken``: notebook to error, for the line that says why verdicts may be missing.
    """
    rows = verdict_rows(folder)
    if not rows:
        missing = " (a notebook broke, see below)" if broken else ""
        return f"no verdicts recorded in {folder.name}{missing}"
    columns = {
        "claim": "claim",
        "plain": "plainly read",
        "label": "verdict",
        "analyses": "other analyses",
        "effect": "effect [95% interval]",
        "control": "control",
        "images": "images",
        "source": "data",
        "model": "model",
        "effect_label": "effect is",
    }
    return "\n".join(aligned(columns, rows))


def aligned(heads: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines of a table with a heading: key -> head, in the order of the columns."""
    widths = {key: max(len(head), *(len(row[key]) for row in rows)) for key, head in heads.items()}
    table = [heads, {key: "-" * width for key, width in widths.items()}, *rows]
    return [
        "  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip() for row in table
    ]


def plain_words(entry: Mapping[str, Any]) -> dict[str, str]:
    """The plain reading of a verdict's entry, see ``verdict_rows``; dashes without one."""
    plain = entry.get("plain") or {}
    number = effect_text(plain.get("effect"), [plain.get("lo"), plain.get("hi")])
    return {
        "plain": str(plain.get("verdict") or "-"),
        "plain_effect": " ".join(filter(None, (number, str(plain.get("label") or "")))),
        "plain_colour": COLOURS.get(str(plain.get("verdict")), "#555555"),
        "separates": str(entry.get("separates") or ""),
    }


def control_words(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the control, empty where that is "control" itself, and what is said of it."""
    name, _, note = str(entry.get("control_label") or "").partition(", ")
    return ("" if name == "control" else name), note


def label_text(entry: Mapping[str, Any]) -> str:
    """The verdict of an entry, and whether it is fragile."""
    return headline(str(entry["verdict"]), (entry.get("robustness") or {}).get("fragile"))


def images_text(entry: Mapping[str, Any]) -> str:
    """How many images a verdict rests on; a dash for none."""
    return str(entry.get("n_images") or "-")


def effect_text(effect: Any, interval: Any) -> str:
    """Effect with its interval, or a dash."""
    if number_text(effect) == "-":
        return "-"
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return number_text(effect)
    return f"{number_text(effect)} [{number_text(interval[0])}, {number_text(interval[1])}]"


def number_text(value: Any) -> str:
    """Three digits, three decimals at most; a dash for what was not measured; else as it is.

    ``0.000`` is a small number, ``0`` is zero.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{round(value, 3):.3g}" if round(value, 3) or not value else "0.000"
    return str(value)
