"""What a verdict is: its words, its fields, and how it is shown."""

import html
import json
import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

__all__ = ["COLOURS", "VERDICTS", "Verdict"]

VERDICTS = ("supported", "weaker", "not supported", "inconclusive", "not testable")

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
        p: Smallest 1 - level at which the rule still says "supported" (``p_value`` in claims.yaml);
            NaN for any other verdict.
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
    p: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """The entry of claims.json: plain values only, NaN as None, tables as lists of rows."""
        return {
            "claim": self.claim,
            "statement": self.statement,
            "model": self.model,
            "verdict": self.verdict,
            "effect": _number(self.effect),
            "effect_label": self.effect_label,
            "ci": [_number(bound) for bound in self.ci],
            "p": _number(self.p),
            "n_images": self.n_images,
            "control_effect": _number(self.control_effect),
            "control_label": ", ".join(self.control_label),
            "thresholds": self.thresholds,
            "notebook": self.notebook,
            "reason": self.reason,
            "details": _rows(self.details),
            "controls": _rows(self.controls),
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
            ("images", str(self.n_images or "-")),
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


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table without its index, NaN and infinity as None."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def _interval(ci: tuple[float, float]) -> str:
    """Two bounds, or nothing where they were not reached."""
    return "" if any(math.isnan(b) for b in ci) else f"[{ci[0]:.2f}, {ci[1]:.2f}]"
