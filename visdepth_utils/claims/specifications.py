"""The same claim under every reasonable analysis: does its verdict hang on one choice?

A specification curve (Simonsohn, Simmons and Nelson 2020, Nature Human Behaviour 4, 1208-1214):
``claims.yaml`` registers, per claim, choices with their options and reasons. Every combination is
judged by the claim's own rule from the tables that are there; nothing is measured again.
"""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.registry import claim_entry, verdict_by

__all__ = ["Robustness", "choices", "robustness", "specifications"]


def choices(entry: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The registered choices of a claim.

    Args:
        entry: Of claims.yaml.

    Returns:
        Choice -> option -> what it changes in the entry. The first option of each is the registered
        one.
    """
    given = entry.get("specifications", {})
    return {name: dict(choice["options"]) for name, choice in given.items()}


def specifications(
    claim: str,
    table: pd.DataFrame,
    *,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    most: int | None = None,
    path: str | None = None,
) -> pd.DataFrame:
    """Judge a claim under all registered combinations of choices.

    Args:
        claim: Identifier, e.g. ``"C4"``.
        table: As for ``registry.verdict``.
        control: As for ``registry.verdict``.
        most: At most this many combinations: the registered one, and others drawn by the registered
            seed. None for all.
        path: Claims file; None for data/claims.yaml.

    Returns:
        One row per analysis, the registered one first: a column per choice with the option taken,
        ``verdict, effect, lo, hi, reason``. A combination that the tables do not allow (a column or
        a mode that was not measured) is "not testable", with the reason.

    Raises:
        ValueError: The claim is unknown, or has no registered choices.
    """
    entry = claim_entry(claim, path)
    options = choices(entry)
    if not options:
        raise ValueError(f"claim {claim!r} has no specifications in claims.yaml: add some")
    combinations = list(itertools.product(*options.values()))
    if most is not None and most < len(combinations):
        rng = np.random.default_rng(entry["common"]["seed"])
        drawn = rng.choice(len(combinations) - 1, most - 1, replace=False) + 1
        combinations = [combinations[i] for i in (0, *sorted(drawn))]
    common = entry["common"] | {"resamples": entry["common"]["specifications"]["resamples"]}
    rows = []
    for taken in combinations:
        spec = copy.deepcopy(entry) | {"common": common}
        for (name, _), option in zip(options.items(), taken, strict=True):
            spec = _merged(spec, options[name][option])
        try:
            judged = verdict_by(claim, spec, table, control)
        except ValueError as error:  # the registered combination must be there
            if not rows:
                raise
            outcome = {"verdict": "not testable", "reason": str(error)}
            outcome |= dict.fromkeys(("effect", "lo", "hi"), float("nan"))
        else:
            outcome = {"verdict": judged.verdict, "effect": judged.effect, "lo": judged.ci[0]}
            outcome |= {"hi": judged.ci[1], "reason": judged.reason}
        rows.append(dict(zip(options, taken, strict=True)) | outcome)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Robustness:
    """How far a verdict holds under other choices.

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
        text = f"holds in {100 * self.agree:.0f}% of {self.n} analyses"
        if self.fragile and self.moves:
            text += f": fragile, mostly by the choice of {next(iter(self.moves))}"
        return text


def robustness(claim: str, analyses: pd.DataFrame, *, path: str | None = None) -> Robustness:
    """Count over the analyses of ``specifications``.

    Args:
        claim: Identifier.
        analyses: What ``specifications`` returned.
        path: Claims file; None for data/claims.yaml.

    Returns:
        The counts. With nothing testable all shares are NaN, and nothing is fragile.
    """
    entry = claim_entry(claim, path)
    names = [name for name in choices(entry) if name in analyses]
    registered = analyses.iloc[0]
    made = analyses[analyses["verdict"] != "not testable"]
    if registered["verdict"] == "not testable" or made.empty:
        return Robustness(str(registered["verdict"]), len(made), *[float("nan")] * 2, {}, False)
    agree = float((made["verdict"] == registered["verdict"]).mean())
    same = float((np.sign(made["effect"]) == np.sign(registered["effect"])).mean())
    moves = {name: _moves(made, name, [n for n in names if n != name]) for name in names}
    moves = {name: share for name, share in moves.items() if share > 0}
    least = entry["common"]["specifications"]["fragile_below"]
    return Robustness(
        verdict=str(registered["verdict"]),
        n=len(made),
        agree=agree,
        same_sign=same,
        moves=dict(sorted(moves.items(), key=lambda pair: -pair[1])),
        fragile=min(agree, same) < least,
    )


def _moves(analyses: pd.DataFrame, name: str, others: list[str]) -> float:
    """Share of pairs that differ in one choice alone whose verdicts differ."""
    pairs = changed = 0
    groups = analyses.groupby(others) if others else [((), analyses)]
    for _, group in groups:
        for a, b in itertools.combinations(group["verdict"], 2):
            pairs, changed = pairs + 1, changed + (a != b)
    return changed / pairs if pairs else 0.0


def _merged(entry: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The entry with the change put in, level by level; lists and numbers are replaced."""
    out = dict(entry)
    for key, value in change.items():
        inner = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if inner else value
    return out
