"""What claims.json and provenance.json may hold: checked whenever one of them is read."""

import json
from collections.abc import Callable
from typing import Any

from visdepth_utils.claims.verdict import VERDICTS

_LARGE = 1e300  # JSON holds whole numbers that are too large for a float
_PARTS = ("settings", "model", "data", "code", "versions", "machine", "notebooks")


def checked_claims(text: str) -> list[dict[str, Any]]:
    """Parse claims.json; ValueError says what in it is not what ``Run.record`` writes."""
    entries = _parsed(text)
    if not isinstance(entries, list):
        raise ValueError("it holds no list")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"entry {number} is no object")
        if lacking := {"claim", "model", "verdict"} - set(entry):
            raise ValueError(f"entry {number} lacks {', '.join(sorted(lacking))}")
        if entry["verdict"] not in VERDICTS:
            raise ValueError(f"entry {number} has the verdict {entry['verdict']!r:.60}")
        if wrong := [name for name in ("claim", "model") if not entry[name]]:
            raise ValueError(f"{wrong[0]} of entry {number} is not text")
        for kind, (names, fits) in _KINDS.items():
            for name in names.split():
                if entry.get(name) is not None and not fits(entry[name]):
                    raise ValueError(f"{name} of entry {number} is not {kind}")
    return entries


def checked_provenance(text: str) -> dict[str, Any]:
    """Parse provenance.json; ValueError says what in it is not what ``annotate`` writes."""
    facts = _parsed(text)
    if not isinstance(facts, dict):
        raise ValueError("it holds no object")
    for name in _PARTS:
        if not isinstance(facts.get(name), dict | None):
            raise ValueError(f"its {name} is no object")
    for name, ran in (facts.get("notebooks") or {}).items():
        if not isinstance(ran, dict) or not isinstance(ran.get("settings"), dict | None):
            raise ValueError(f"what it says of notebook {name!r:.60} is no object")
    return facts


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGE


def _are(rows: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(rows, list) and all(map(fits, rows))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": (
        "claim model statement reason notebook source effect_label control_label separates",
        lambda value: isinstance(value, str),
    ),
    "a number": ("effect control_effect n_images p", is_number),
    "two numbers": (
        "ci",
        lambda x: _are(x, lambda one: one is None or is_number(one)) and len(x) in (0, 2),
    ),
    "an object": ("thresholds plain robustness rules", _is_object),
    "a list of objects": ("details controls", lambda rows: _are(rows, _is_object)),
}
"""What an entry of claims.json may hold beside its verdict: kind -> names, and the test of it."""


def _parsed(text: str) -> Any:
    """JSON without NaN and infinity, which no file of ours holds; however deeply nested."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}")
