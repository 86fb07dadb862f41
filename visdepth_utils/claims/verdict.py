"""What a verdict is: its words, its fields, and how it is shown."""

import html
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

__all__ = ["COLOURS", "VERDICTS", "Reading", "Robustness", "Verdict", "headline"]

VERDICTS = ("supported", "weaker", "not supported", "inconclusive", "not testable")

COLOURS = {
    "supported": "#1b7837",
    "weaker": "#8a6d00",
    "not supported": "#a6341b",
    "inconclusive": "#555555",
    "not testable": "#555555",
}


def headline(verdict: str, fragile: bool | None) -> str:
    """A verdict as it is printed: its word, and whether too many other analyses disagree.

    Args:
        verdict: One of ``VERDICTS``.
        fragile: As in ``Robustness``; None where other analyses were not asked.

    Returns:
        E.g. ``"supported (fragile)"``.
    """
    return f"{verdict} (fragile)" if fragile else verdict


@dataclass(frozen=True)
class Reading:
    """The plain reading of a claim on one model, see ``claims.published``.

    Attributes:
        verdict: "supported", "not supported", "inconclusive" or "not testable".
        effect: The number; NaN where it could not be had.
        lo: Lower end of its two-sided interval.
        hi: Upper end.
        threshold: What it is held against.
        label: What the number is.
        reason: Why there is none; empty where there is one.
    """

    verdict: str
    effect: float
    lo: float
    hi: float
    threshold: float
    label: str
    reason: str = ""


@dataclass(frozen=True)
class Robustness:
    """How far a verdict holds under other choices, see ``claims.specifications``.

    Attributes:
        verdict: Of the registered analysis.
        n: Analyses that could be made: those that are "not testable" do not count.
        agree: Share of them with the same verdict.
        same_sign: Share of them whose effect has the sign of the registered one.
        moves: Choice -> share of pairs of analyses, equal but for this choice, whose verdicts
            differ; the largest first.
        fragile: Whether ``agree`` or ``same_sign`` is below the registered share.
    """

    verdict: str
    n: int
    agree: float
    same_sign: float
    moves: dict[str, float]
    fragile: bool

    def __str__(self) -> str:
        """One line for the verdict."""
        if not self.n:
            return "no analysis could be made"
        text = f"holds in {100 * self.agree:.0f}% of {self.n} analyses"
        if self.fragile and self.moves:
            text += f": fragile, mostly by the choice of {next(iter(self.moves))}"
        return text


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
        plain: The plain reading of the same tables; None if it was not asked or there is none.
        separates: One sentence on the plain reading and this verdict.
        robustness: How many other analyses agree; None if they were not asked.
        analyses: All of them, as ``specifications`` returns them.
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
    plain: Reading | None = None
    separates: str = ""
    robustness: Robustness | None = None
    analyses: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

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
            "plain": asdict(self.plain) if self.plain else None,
            "separates": self.separates,
            "robustness": self.robustness
            and asdict(self.robustness) | {"line": str(self.robustness)},
        }

    @property
    def fragile(self) -> bool:
        """Whether too many other analyses disagree; False where they were not asked."""
        return self.robustness is not None and self.robustness.fragile

    def _facts(self) -> list[tuple[str, str]]:
        """The lines shown, in order, with rounded numbers."""
        effect = (
            "not measured" if math.isnan(self.effect) else f"{self.effect:.2f} {_interval(self.ci)}"
        )
        control = (
            "not measured" if math.isnan(self.control_effect) else f"{self.control_effect:.2f}"
        )
        name, note = self.control_label
        lines = [
            ("model", self.model),
            ("claim", self.statement),
            ("effect", f"{effect} ({self.effect_label})" if self.effect_label else effect),
            (name, f"{control} ({note})"),
            ("images", str(self.n_images or "-")),
            ("reason", self.reason),
        ]
        if self.plain:
            number = f"{self.plain.effect:.2f} {_interval((self.plain.lo, self.plain.hi))}"
            shown = self.plain.reason or f"{number} ({self.plain.label})"
            lines.append(("plainly", f"{self.plain.verdict}: {shown}. {self.separates}"))
        if self.robustness:
            lines.append(("analyses", str(self.robustness)))
        return lines

    def __str__(self) -> str:
        """At most ten lines of plain text."""
        lines = [f"{name:<10}{value}" for name, value in self._facts()]
        return "\n".join([f"{self.claim}: {headline(self.verdict.upper(), self.fragile)}", *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A small table for notebooks; every value is escaped."""
        cell = "padding:2px 10px;text-align:left;vertical-align:top"
        big = f"{cell};font-size:120%;font-weight:bold"
        colour = COLOURS.get(self.verdict, "#000000")
        head = (self.claim, big, headline(self.verdict, self.fragile), f"{big};color:{colour}")
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
