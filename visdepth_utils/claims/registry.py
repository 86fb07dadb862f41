"""Claims: the pre-registered entries of data/claims.yaml, and the verdict on a table.

A claim is a test on tidy tables. Its thresholds are read from ``data/claims.yaml`` and from nowhere
else; the rule that applies them is one module per claim in this folder. Nothing here
knows a model.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from visdepth_utils.claims import c0, c1, c2, c3, c4, c5, c6, c7, c8, c9
from visdepth_utils.claims.bootstrap import rule_variants
from visdepth_utils.claims.once import same_tables
from visdepth_utils.claims.verdict import VERDICTS, Verdict

__all__ = [
    "CLAIMS_FILE",
    "VERDICTS",
    "Verdict",
    "claim_entry",
    "load_claims",
    "not_testable",
    "sensitivity",
    "verdict",
    "verdict_by",
]

CLAIMS_FILE = Path(__file__).resolve().parents[2] / "data" / "claims.yaml"
Rule = Callable[[dict[str, Any], pd.DataFrame, dict[str, pd.DataFrame]], dict[str, Any]]
RULES: dict[str, Rule] = {
    "C0": c0.decide,
    "C1": c1.decide,
    "C2": c2.decide,
    "C3": c3.decide,
    "C4": c4.decide,
    "C5": c5.decide,
    "C6": c6.decide,
    "C7": c7.decide,
    "C8": c8.decide,
    "C9": c9.decide,
}
VARIANTS: dict[str, Callable[[dict[str, Any]], dict[str, dict[str, Any]]]] = {
    "C0": rule_variants,
    "C1": c1.variants,
    "C2": c2.variants,
    "C3": c3.variants,
    "C4": rule_variants,
    "C5": rule_variants,
    "C6": rule_variants,
    "C7": rule_variants,
    "C8": c8.variants,
    "C9": lambda entry: {},
}


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


@same_tables()
def verdict(
    claim: str,
    table: pd.DataFrame,
    *,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    model: str = "",
    path: str | Path | None = None,
    p_value: bool = True,
) -> Verdict:
    """Decide a claim on one model by its pre-registered rule.

    Args:
        claim: Identifier, e.g. ``"C1"``.
        table: Measurements on the trained model (C1: ``layer_geometry``; C2: ``text_geometry`` and
            ``placed_geometry``; C3: ``substitution_grid`` of image and text states, its controls
            among the rows; C4: ``truncation_sweep``; C5: ``chains.compare`` of a
            ``reasoning_sweep``; C6: ``recovery_sweep`` of the tasks; C7: ``truncation_sweep`` of
            several styles; C8: of single-token tasks; C9: ``replication.all_verdicts``).
        control: Name -> what it is compared with, on the same images (C1, C2: the same measurement
            on untrained models; C4: ``"conditions"`` from ``evaluate`` and ``"token_kl"``; C7:
            ``"conditions"``; C8: that and ``"times"`` from ``time_by_depth``). Without it, a
            pattern that is there is still "inconclusive".
        model: Name for the record.
        path: Claims file; None for data/claims.yaml.
        p_value: Give a supported claim its p value, which asks the rule some more times.

    Returns:
        The verdict.

    Raises:
        ValueError: Unknown claim, or a table that lacks a column, a metric or the same images.
    """
    entry = claim_entry(claim, path)
    found = verdict_by(claim, entry, table, control, model)
    if found.verdict == "supported" and p_value:
        found = replace(found, p=_smallest_alpha(claim, entry, table, control))
    return found


def not_testable(
    notebook: str, reason: str, model: str, path: str | Path | None = None
) -> list[Verdict]:
    """Verdicts on the claims of a notebook whose measurement could not be made.

    Args:
        notebook: Name without ending.
        reason: One line.
        model: Name for the record.
        path: As for ``load_claims``.

    Returns:
        One per claim of the notebook, all "not testable"; none for a notebook without a claim.
    """
    return [
        Verdict(
            claim=name,
            statement=entry["statement"],
            model=model,
            verdict="not testable",
            effect=float("nan"),
            ci=(float("nan"), float("nan")),
            n_images=0,
            control_effect=float("nan"),
            thresholds={},
            notebook=notebook,
            reason=reason,
            effect_label=entry.get("effect_label", ""),
            control_label=(entry["control_label"]["name"], entry["control_label"]["note"]),
        )
        for name, entry in load_claims(path)["claims"].items()
        if entry["notebook"] == notebook
    ]


@same_tables()
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
        v = verdict_by(claim, *case, "")
        row = {
            "variant": name,
            "verdict": v.verdict,
            "effect": v.effect,
            "control": v.control_effect,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _smallest_alpha(
    claim: str,
    entry: dict[str, Any],
    table: pd.DataFrame,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
) -> float:
    """Smallest 1 - level at which a supported claim still is, to a tenth and rounded up."""
    common = entry["common"]

    def holds(alpha: float) -> bool:
        spec = {**entry, "common": {**common, "level": 1 - alpha}}
        return verdict_by(claim, spec, table, control, "").verdict == "supported"

    low, high = 2 / common["resamples"], 1 - common["level"]
    if holds(low):
        return low
    while high / low > 1.1:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def verdict_by(
    claim: str,
    spec: dict[str, Any],
    table: pd.DataFrame,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    model: str = "",
) -> Verdict:
    """Apply a claim's rule under an entry that need not be the registered one.

    Args:
        claim: Identifier.
        spec: As ``claim_entry`` returns it, changed or not.
        table: As for ``verdict``.
        control: As for ``verdict``.
        model: Name for the record.

    Returns:
        The verdict, without p value.

    Raises:
        ValueError: As ``verdict``.
    """
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
