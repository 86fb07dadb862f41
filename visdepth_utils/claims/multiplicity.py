"""Many claims on one model, and one claim on many models: corrections and counts.

Pure functions of the entries of claims.json (``runs.records``). What they do and why is in
data/claims.yaml under ``common`` (``p_value``, ``multiplicity``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from visdepth_utils.claims.verdict import VERDICTS

__all__ = ["after_holm", "holm", "holm_over_claims", "replications"]

Entry = Mapping[str, Any]
NAN = float("nan")


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p values (family-wise error; Holm 1979).

    Args:
        p: Of all tests of the family.

    Returns:
        Adjusted, in the order given.

    Raises:
        ValueError: For what is no p value.
    """
    given = np.asarray(p, dtype=np.float64)
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p values must be numbers in [0, 1], got {given.tolist()}")
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * (len(given) - np.arange(len(given))))
    return np.minimum(stepped, 1.0)[np.argsort(order, kind="stable")]


def holm_over_claims(entries: Sequence[Entry], alpha: float = 0.05) -> pd.DataFrame:
    """Holm's correction over the claims of each model.

    Args:
        entries: Of claims.json, of one or several models: ``claim, model, verdict`` and, where the
            claim is supported, ``p``.
        alpha: Chance of one or more false "supported" on a model.

    Returns:
        Columns ``model, claim, verdict, p, p_holm, holds``, sorted by model and claim. ``p`` is 1
        for claims that were tested and are not supported, NaN for those that could not be tested.
        ``holds``: supported, also after Holm.

    Raises:
        ValueError: If a supported claim has no p value, or a model has two entries of one claim.
    """
    rows = []
    for entry in entries:
        p = 1.0
        if entry["verdict"] == "not testable":
            p = NAN
        elif entry["verdict"] == "supported":
            if pd.isna(entry.get("p")):
                raise ValueError(
                    f"{entry['claim']} on {entry['model']} is supported but has no p value: "
                    "run its notebook again"
                )
            p = float(entry["p"])
        rows.append({name: entry[name] for name in ("model", "claim", "verdict")} | {"p": p})
    table = pd.DataFrame(rows, columns=["model", "claim", "verdict", "p"])
    if (twice := table[table.duplicated(["model", "claim"])]).size:
        first = twice.iloc[0]
        raise ValueError(f"two entries for {first['claim']} on {first['model']}: give one")
    table = table.sort_values(["model", "claim"], ignore_index=True)
    table["p_holm"] = NAN
    for _, own in table[table["p"].notna()].groupby("model"):
        table.loc[own.index, "p_holm"] = holm(own["p"])
    table["holds"] = (table["verdict"] == "supported") & (table["p_holm"] <= alpha)
    return table


def after_holm(entries: Sequence[Entry], alpha: float = 0.05) -> pd.DataFrame:
    """How many claims of each model are supported, before and after the correction.

    Args:
        entries: As for ``holm_over_claims``.
        alpha: As there.

    Returns:
        One row per model: ``tested`` claims, ``supported``, and ``after Holm``; and ``smallest p``,
        adjusted, NaN where no claim could be tested.

    Raises:
        ValueError: As ``holm_over_claims``.
    """
    table = holm_over_claims(entries, alpha)
    groups = table.groupby("model")
    return pd.DataFrame(
        {
            "tested": groups["p"].count(),
            "supported": groups["verdict"].agg(lambda said: int((said == "supported").sum())),
            "after Holm": groups["holds"].sum(),
            "smallest p": groups["p_holm"].min(),
        }
    )


def replications(entries: Sequence[Entry], rate: float = 0.05) -> pd.DataFrame:
    """In how many models each claim is supported; nothing is pooled.

    Args:
        entries: Of claims.json of several models; leave untrained ones out.
        rate: Chance of a false "supported" on one model.

    Returns:
        One row per claim: ``claim``, ``models`` (tested), one column of counts per verdict, and
        ``p``: the chance of as many supported or more among the models tested if each were false
        (binomial; NaN without a model that could be tested).

    Raises:
        ValueError: If an entry has an unknown verdict.
    """
    rows = []
    for claim in sorted({entry["claim"] for entry in entries}):
        said = [entry["verdict"] for entry in entries if entry["claim"] == claim]
        if unknown := set(said) - set(VERDICTS):
            raise ValueError(f"unknown verdict {sorted(unknown)[0]!r}: use {', '.join(VERDICTS)}")
        counts = {verdict: said.count(verdict) for verdict in VERDICTS}
        tested = len(said) - counts["not testable"]
        p = NAN
        if tested:
            p = float(binomtest(counts["supported"], tested, rate, alternative="greater").pvalue)
        rows.append({"claim": claim, "models": tested, **counts, "p": p})
    return pd.DataFrame(rows, columns=["claim", "models", *VERDICTS, "p"])
