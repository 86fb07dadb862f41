"""The same claim under every reasonable analysis: does its verdict hang on one choice?

A specification curve (Simonsohn, Simmons and Nelson 2020, Nature Human Behaviour 4, 1208-1214):
``claims.yaml`` registers, per claim, choices with their options and reasons. Every combination is
judged by the claim's own rule from the tables that are there; nothing is measured again.
"""

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.once import same_tables
from visdepth_utils.claims.registry import claim_entry, verdict_by
from visdepth_utils.claims.verdict import Robustness

__all__ = ["choices", "robustness", "specifications"]


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


@same_tables()
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
        most: At most this many combinations: the registered one, those that change one choice, and
            others drawn by the registered seed. None for all.
        path: Claims file; None for data/claims.yaml.

    Returns:
        One row per analysis, the registered one first: a column per choice with the option taken,
        ``verdict, effect, lo, hi, reason``. An option that the tables do not allow (a column or a
        mode that was not measured) is "not testable" once, with the reason, and not combined with
        others. Where the registered analysis is not testable, it is the only row.

    Raises:
        ValueError: The claim is unknown, or has no registered choices.
    """
    entry = claim_entry(claim, path)
    options = choices(entry)
    if not options:
        raise ValueError(f"claim {claim!r} has no specifications in claims.yaml: add some")
    common = entry["common"] | {"resamples": entry["common"]["specifications"]["resamples"]}

    def judged(taken: tuple[str, ...]) -> dict[str, Any]:
        spec = copy.deepcopy(entry) | {"common": common}
        for name, option in zip(options, taken, strict=True):
            spec = _merged(spec, options[name][option])
        try:
            v = verdict_by(claim, spec, table, control)
        except ValueError as error:
            if taken == registered:  # this one must be there
                raise
            missing = dict.fromkeys(("effect", "lo", "hi"), float("nan"))
            return {"verdict": "not testable", **missing, "reason": str(error)}
        return dict(verdict=v.verdict, effect=v.effect, lo=v.ci[0], hi=v.ci[1], reason=v.reason)

    registered = tuple(next(iter(choice)) for choice in options.values())
    found = {registered: judged(registered)}
    if found[registered]["verdict"] != "not testable":
        left = {name: [first] for name, first in zip(options, registered, strict=True)}
        for place, (name, choice) in enumerate(options.items()):
            for option in list(choice)[1:]:
                single = (*registered[:place], option, *registered[place + 1 :])
                found[single] = judged(single)
                if found[single]["verdict"] != "not testable":
                    left[name].append(option)
        others = [taken for taken in itertools.product(*left.values()) if taken not in found]
        if most is not None and len(found) + len(others) > most:
            rng = np.random.default_rng(common["seed"])
            drawn = rng.choice(len(others), max(0, most - len(found)), replace=False)
            others = [others[i] for i in sorted(drawn)]
        found |= {taken: judged(taken) for taken in others}
    return pd.DataFrame(
        dict(zip(options, taken, strict=True)) | numbers for taken, numbers in found.items()
    )


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
