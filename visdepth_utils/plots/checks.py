"""The checks of a verdict as one table: what was asked, what came out, and whether it is enough."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from visdepth_utils.claims.c2 import MOVES, MOVES_NOT
from visdepth_utils.claims.stabilisation import EARLY, LATE, MORE, NO_MORE, RISES, SETTLED, SOONER
from visdepth_utils.claims.verdict import Verdict

__all__ = ["Checks", "check_table", "digits"]

_YES = {"holds", "used", "positive", "lost", EARLY, MORE, MOVES}
_NO = {"not above 0", LATE, RISES, NO_MORE, SETTLED, SOONER, MOVES_NOT}
_LESS = ("lost", "loss", "left there", "time there")
"""Words of measures of which less is better; of all others more is."""
_ESTIMATE = {
    "estimate": "{}",
    "left": "{}: what is left of its change after one third of the depth",
    "difference": "{}: text minus image",
}
"""Column that holds the number -> what was asked, of the measure."""


@dataclass(frozen=True, repr=False)
class Checks:
    """A table of text, shown whole: a notebook would cut long words of a plain ``DataFrame``."""

    table: pd.DataFrame

    def __repr__(self) -> str:
        """Plain text."""
        return self.table.to_string(index=False)

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.table.to_html(index=False, justify="left")


def check_table(verdict: Verdict) -> Checks:
    """Show the parts of a verdict in one table, whatever its claim: one row per part.

    ``margin`` is what the estimate is held against; ``pass`` is "yes", "no" or "unclear", by the
    rule where it says so, else by the interval, and empty where nothing is asked; ``note`` is what
    the rule says of it.
    """
    details = verdict.details
    rows = [_row(row) for row in details.to_dict("records")]
    return Checks(
        pd.DataFrame(rows, columns=["asked", "estimate", "interval", "margin", "pass", "note"])
    )


def digits(value: Any) -> str:
    """A number at two or three digits, never more than three decimals; empty for none."""
    if value is None or not math.isfinite(value):
        return ""
    if abs(value) < 1 or float(value).is_integer():
        return f"{round(value, 3) + 0:g}"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def _row(row: dict[str, Any]) -> dict[str, str]:
    """One part, as text."""
    column = next((name for name in _ESTIMATE if name in row), None)
    value = row[column] if column else None
    lo, hi, margin = (row.get(name) for name in ("lo", "hi", "margin"))
    bounds = [digits(bound) for bound in (lo, hi)]
    return {
        "asked": _ESTIMATE[column].format(row["measure"]) if column else str(row["measure"]),
        "estimate": digits(value),
        "interval": " to ".join(bounds) if all(bounds) else "",
        "margin": digits(margin),
        "pass": _passed(row, lo, hi, margin),
        "note": str(row.get("label") or ""),
    }


def _passed(row: dict[str, Any], lo: Any, hi: Any, margin: Any) -> str:
    """Whether a part clears its margin, by the rule's own word where it has one."""
    said = str(row.get("label") or "")
    if not digits(margin):
        return ""
    if said.removeprefix("beside; ") in _YES:
        return "yes"
    if said in _NO or said.startswith(("skipped", "harm does not")):
        return "no"
    if "already settled" in said or "too small" in said:
        return ""
    if "unclear" in said or "does not tell" in said or not (digits(lo) and digits(hi)):
        return "unclear"
    if any(word in row["measure"] for word in _LESS):
        lo, hi, margin = -hi, -lo, -margin
    return "yes" if lo >= margin else "no" if hi < margin else "unclear"
