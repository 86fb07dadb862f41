"""Claims: the pre-registered entries of data/claims.yaml, and the verdict on a table.

A claim is a test on tidy tables. Its thresholds are read from ``data/claims.yaml`` and from nowhere
else; the rule that applies them is one module per claim in ``visdepth_utils/rules``. Nothing here
knows a model.
"""

import copy
import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from visdepth_utils.rules import c1, c3, c4, c5, c7

__all__ = [
    "CLAIMS_FILE",
    "VERDICTS",
    "Verdict",
    "claim_entry",
    "load_claims",
    "sensitivity",
    "verdict",
]

CLAIMS_FILE = Path(__file__).resolve().parent.parent / "data" / "claims.yaml"
VERDICTS = ("supported", "weaker", "not supported", "inconclusive", "not testable")

Rule = Callable[[dict[str, Any], pd.DataFrame, dict[str, pd.DataFrame]], dict[str, Any]]
RULES: dict[str, Rule] = {
    "C1": c1.decide,
    "C3": c3.decide,
    "C4": c4.decide,
    "C5": c5.decide,
    "C7": c7.decide,
}
VARIANTS: dict[str, Callable[[dict[str, Any]], dict[str, dict[str, Any]]]] = {
    "C1": c1.variants,
    "C3": c3.variants,
    "C4": c4.variants,
    "C5": c5.variants,
    "C7": c7.variants,
}

COLOURS = {
    "supported": "#1b7837",
    "weaker": "#8a6d00",
    "not supported": "#a6341b",
    "inconclusive": "#555555",
    "not testable": "#555555",
}


@dataclass(frozen=True, repr=False)
class Verdict:
    """The answer to one claim on one model.

    Attributes:
        claim: Identifier, e.g. ``"C1"``.
        statement: What was tested, in our words.
        model: Which model.
        verdict: One of ``VERDICTS``.
        effect: The claim's one number (``endpoint`` in claims.yaml); NaN where it was not reached.
        ci: Its two-sided interval by image.
        n_images: Images that counted.
        control_effect: The largest effect among the controls; NaN without one.
        thresholds: The numbers the rule used, from claims.yaml.
        notebook: Where the claim is shown.
        reason: Why this verdict, in plain words.
        details: One row per part of the claim.
        controls: One row per control, with the contrast to it.
        effect_label: What the effect is; shown behind it.
        control_label: Name of the line with the control effect, and what is said behind it.
    """

    claim: str
    statement: str
    model: str
    verdict: str
    effect: float
    ci: tuple[float, float]
    n_images: int
    control_effect: float
    thresholds: dict[str, Any]
    notebook: str
    reason: str
    details: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    controls: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    effect_label: str = ""
    control_label: tuple[str, str] = ("control", "the largest of the controls")

    def to_dict(self) -> dict[str, Any]:
        """The entry of claims.json: plain values only, NaN as None."""
        return {
            "claim": self.claim,
            "statement": self.statement,
            "model": self.model,
            "verdict": self.verdict,
            "effect": _number(self.effect),
            "effect_label": self.effect_label,
            "ci": [_number(bound) for bound in self.ci],
            "n_images": self.n_images,
            "control_effect": _number(self.control_effect),
            "control_label": ", ".join(self.control_label),
            "thresholds": self.thresholds,
            "notebook": self.notebook,
            "reason": self.reason,
        }

    def _facts(self) -> list[tuple[str, str]]:
        """The lines shown, in order, with rounded numbers."""
        effect = (
            "not measured" if math.isnan(self.effect) else f"{self.effect:.2f} {_interval(self.ci)}"
        )
        control = (
            "not measured" if math.isnan(self.control_effect) else f"{self.control_effect:.2f}"
        )
        name, note = self.control_label
        return [
            ("model", self.model),
            ("claim", self.statement),
            ("effect", f"{effect} ({self.effect_label})" if self.effect_label else effect),
            (name, f"{control} ({note})"),
            ("images", str(self.n_images)),
            ("reason", self.reason),
        ]

    def __str__(self) -> str:
        """At most ten lines of plain text."""
        lines = [f"{name:<10}{value}" for name, value in self._facts()]
        return "\n".join([f"{self.claim}: {self.verdict.upper()}", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A small table for notebooks; every value is escaped."""
        cell = "padding:2px 10px;text-align:left;vertical-align:top"
        big = f"{cell};font-size:120%;font-weight:bold"
        colour = COLOURS.get(self.verdict, "#000000")
        head = (self.claim, big, self.verdict, f"{big};color:{colour}")
        rows = [head, *((name, cell, value, cell) for name, value in self._facts())]
        body = "".join(
            f'<tr><th style="{left}">{html.escape(name)}</th>'
            f'<td style="{right}">{html.escape(value)}</td></tr>'
            for name, left, value, right in rows
        )
        return f'<table style="border-left:4px solid #999;max-width:60em">{body}</table>'


@cache
def _read(path: Path, _stamp: float) -> dict[str, Any]:
    """Parse once per state of the file; callers get copies."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load_claims(path: str | Path | None = None) -> dict[str, Any]:
    """Read the registry of claims.

    Args:
        path: A file of the same shape; None for data/claims.yaml.

    Returns:
        The whole file as a fresh dictionary (``paper``, ``common``, ``verdicts``, ``claims``).

    Raises:
        FileNotFoundError: If the file is missing.
    """
    file = Path(path) if path else CLAIMS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"claims file {file} is missing: restore data/claims.yaml from the repository"
        )
    return copy.deepcopy(_read(file, file.stat().st_mtime))


def claim_entry(claim: str, path: str | Path | None = None) -> dict[str, Any]:
    """Read one claim with the common settings merged in under ``common``.

    Args:
        claim: Identifier, e.g. ``"C1"``.
        path: As for ``load_claims``.

    Returns:
        The entry.

    Raises:
        ValueError: If the claim is not registered.
    """
    registry = load_claims(path)
    if claim not in registry["claims"]:
        raise ValueError(f"unknown claim {claim!r}: registered are {', '.join(registry['claims'])}")
    return {**registry["claims"][claim], "common": registry["common"]}


def verdict(
    claim: str,
    table: pd.DataFrame,
    *,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    model: str = "",
    path: str | Path | None = None,
) -> Verdict:
    """Decide a claim on one model by its pre-registered rule.

    Args:
        claim: Identifier, e.g. ``"C1"``.
        table: Measurements on the trained model (C1: ``layer_geometry``; C3: ``substitution_grid``
            of image and text states, its controls among the rows; C4: ``truncation_sweep``; C5:
            ``chains.compare`` of a ``reasoning_sweep``; C7: ``truncation_sweep`` of several
            styles).
        control: Name -> what it is compared with, on the same images (C1: the same measurement on
            untrained models; C4: ``"conditions"`` from ``evaluate`` and ``"token_kl"``; C7:
            ``"conditions"``). Without it, a pattern that is there is still "inconclusive".
        model: Name for the record.
        path: Claims file; None for data/claims.yaml.

    Returns:
        The verdict.

    Raises:
        ValueError: Unknown claim, or a table that lacks a column, a metric or the same images.
    """
    return _decide(claim, claim_entry(claim, path), table, control, model)


def sensitivity(
    claim: str,
    table: pd.DataFrame,
    *,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    measured: Mapping[str, tuple[pd.DataFrame, Mapping[str, pd.DataFrame]]] | None = None,
    path: str | Path | None = None,
) -> pd.DataFrame:
    """Ask the same question with the other settings that claims.yaml lists.

    The verdict is the registered one; this table shows how much it hangs on choices of ours.

    Args:
        claim: Identifier.
        table: As for ``verdict``.
        control: As for ``verdict``.
        measured: Name -> (table, controls) measured again with another setting; judged by the
            registered thresholds.
        path: As for ``verdict``.

    Returns:
        Columns ``variant, verdict, effect, control``; the registered settings come first.
    """
    entry = claim_entry(claim, path)
    specs = {"as registered": entry, **VARIANTS[claim](entry)}
    cases = [(name, spec, table, control) for name, spec in specs.items()]
    cases += [(name, entry, *tables) for name, tables in (measured or {}).items()]
    rows = []
    for name, *case in cases:
        v = _decide(claim, *case, "")
        row = {
            "variant": name,
            "verdict": v.verdict,
            "effect": v.effect,
            "control": v.control_effect,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _decide(
    claim: str,
    spec: dict[str, Any],
    table: pd.DataFrame,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
    model: str,
) -> Verdict:
    """Apply the claim's rule under one set of thresholds."""
    if control is None:
        controls: dict[str, pd.DataFrame] = {}
    elif isinstance(control, pd.DataFrame):
        controls = {"control": control}
    else:
        controls = dict(control)
    if claim not in RULES:
        raise ValueError(
            f"claim {claim!r} is registered but has no rule yet: rules exist for {', '.join(RULES)}"
        )
    found = RULES[claim](spec, table, controls)
    if found["verdict"] not in VERDICTS:
        raise ValueError(
            f"rule of {claim} said {found['verdict']!r}: use one of {', '.join(VERDICTS)}"
        )
    label = spec["control_label"]
    return Verdict(
        claim=claim,
        statement=spec["statement"],
        model=model,
        notebook=spec["notebook"],
        effect_label=spec.get("effect_label", ""),
        control_label=(label["name"], label["note"]),
        **found,
    )


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _interval(ci: tuple[float, float]) -> str:
    """Two bounds, or nothing where they were not reached."""
    return "" if any(math.isnan(b) for b in ci) else f"[{ci[0]:.2f}, {ci[1]:.2f}]"
