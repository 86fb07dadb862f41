"""The report's cards: the verdict of each claim at a glance, with a small picture of its number."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from visdepth_utils.claims.registry import load_claims
from visdepth_utils.report.verdict_table import verdict_rows
from visdepth_utils.runs.records import read_claims, read_curves

_WIDTH, _HEIGHT, _EDGE = 200.0, 44.0, 5.0


def cards(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``verdict_rows``, each with ``short``, ``share`` and ``spark``.

    ``short``: the reason without what stands in brackets. ``share``: of the analyses that agree,
    in percent, or None. ``spark``: None, or a drawing with ``label`` and, in a field of 200 x 44,
    ``lines`` (name to points) of curves by depth where the run keeps them for this claim, else
    ``mark`` (see ``_interval``).
    """
    curves = read_curves(folder)
    found = []
    for entry, row in zip(read_claims(folder), verdict_rows(folder), strict=True):
        agree = (entry.get("robustness") or {}).get("agree")
        spark = _retention(curves, entry["claim"]) or _interval(entry)
        share = None if agree is None else round(100 * agree)
        found.append({**row, "short": in_short(row["reason"]), "share": share, "spark": spark})
    return found


def in_short(reason: str) -> str:
    """A reason as a sentence of its own, without what stands in brackets."""
    text = re.sub(r" \([^()]*\)", "", reason)
    return text[:1].upper() + text[1:] + "." if text else ""


def _retention(curves: pd.DataFrame, claim: str) -> dict[str, Any] | None:
    """What the title and the fourth claim are about: two curves of retention, means of tasks."""
    kept = curves[curves["measure"].str.startswith("retention: ")]
    by_task = kept.assign(task=kept["measure"].str.removeprefix("retention: "))
    if claim == "C0":
        sets = {name: by_task[by_task["series"] == name] for name in ("freeze", "remove")}
    elif claim == "C4":
        removed, tasks = (
            by_task[by_task["series"] == "remove"],
            load_claims()["claims"]["C4"]["tasks"],
        )
        groups = {"single words": tasks["single"], "text": tasks["multi"]}
        sets = {name: removed[removed["task"].isin(group)] for name, group in groups.items()}
    else:
        return None
    if any(rows.empty for rows in sets.values()):
        return None
    lines = {}
    for name, rows in sets.items():
        mean = rows.groupby("depth")["mean"].mean()
        scaled = zip(mean.index / max(mean.index[-1], 1), mean.clip(0, 1), strict=True)
        lines[name] = " ".join(f"{_x(depth):.1f},{_y(value):.1f}" for depth, value in scaled)
    return {"label": "what is left of the picture's gain, by depth", "lines": lines}


def _interval(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """Effect with its interval and the control on one line with zero, as places from 0 to 200."""
    effect, bounds = entry.get("effect"), entry.get("ci") or ()
    if effect is None:
        return None
    lo, hi = (effect if bound is None else bound for bound in (bounds or (effect, effect)))
    control = entry.get("control_effect")
    low, high = min(0, lo, control or 0), max(0, hi, control or 0)
    span = (high - low) or 1
    named = {"zero": 0, "lo": lo, "hi": hi, "effect": effect, "control": control}
    mark = {k: None if v is None else round(_x((v - low) / span), 1) for k, v in named.items()}
    return {"label": "effect with its interval; zero and the control beside it", "mark": mark}


def _x(share: float) -> float:
    return _EDGE + share * (_WIDTH - 2 * _EDGE)


def _y(share: float) -> float:
    return _HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE)
