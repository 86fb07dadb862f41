"""C9, verdicts agree across models: the rule behind the entry in data/claims.yaml.

Models are not pooled: per claim it is asked whether all trained models say the same, and over
claims how often.
"""

import math
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from visdepth_utils.claims.bootstrap import require, said

Spec = dict[str, Any]
NAN = float("nan")
NEEDED = {"claim", "model", "verdict"}


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C9.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``replication.all_verdicts``.
        controls: Not used; untrained models are among the rows.

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If the table lacks a column.
    """
    require(table, NEEDED, "table", "replication.all_verdicts")
    rows = table[table["verdict"].isin(spec["decided"]) & (table["claim"] != "C9")]
    untrained = rows["model"].str.contains(spec["untrained"], regex=False)
    counts = replications(rows[~untrained])
    asked = counts[counts["models"] >= spec["min_models"]]
    n, agree = len(asked), int(asked["agree"].sum())
    level = spec["common"]["level"]
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    names = ("decided", "untrained", "min_models", "min_claims")
    found["thresholds"] = {**{k: spec[k] for k in names}, "level": level}
    found["thresholds"]["margin_agreement"] = spec["margins"]["agreement"]["value"]
    found["details"] = counts.assign(counted=counts["models"] >= spec["min_models"])
    if n < spec["min_claims"]:
        why = (
            f"{n} claims were decided on {spec['min_models']} trained models or more; "
            f"the rule asks for {spec['min_claims']}: run more models"
        )
        return found | said("not testable", why)
    interval = binomtest(agree, n).proportion_ci(level)
    found |= {"effect": agree / n, "ci": (float(interval.low), float(interval.high))}
    found["control_effect"], found["controls"] = _control(rows[untrained], asked)
    least = spec["margins"]["agreement"]["value"]
    count = f"{agree} of {n} claims have one verdict on all trained models"
    if interval.low > least:
        shared = found["control_effect"]
        if math.isnan(shared):
            return found | said("inconclusive", f"{count}, but no untrained model was asked them")
        if shared >= least:
            given = f"untrained models are given {shared:.0%} of these verdicts too"
            return found | said("weaker", f"{count}, but {given}: the method may agree with itself")
        return found | said("supported", count)
    if interval.high < least:
        return found | said("not supported", count)
    return found | said("inconclusive", f"{count}: too few claims to tell")


def replications(rows: pd.DataFrame) -> pd.DataFrame:
    """How many models say what about each claim.

    Args:
        rows: Decided verdicts, columns ``claim, model, verdict``.

    Returns:
        Per claim: ``models`` (how many decided it), ``verdict`` (the most frequent one, the first
        by name of several), ``same`` (how many have it), ``agree`` (whether all do).
    """
    out = []
    for claim, own in rows.groupby("claim"):
        votes = own["verdict"].value_counts()
        top = sorted(votes[votes == votes.max()].index)[0]
        models, same = len(own), int(votes[top])
        out.append((claim, models, top, same, same == models))
    return pd.DataFrame(out, columns=["claim", "models", "verdict", "same", "agree"])


def _control(untrained: pd.DataFrame, asked: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """Share of the agreed verdicts that untrained models are given too; NaN if none was asked."""
    agreed = asked[asked["agree"]].set_index("claim")["verdict"]
    rows = untrained[untrained["claim"].isin(agreed.index)]
    if rows.empty:
        return NAN, pd.DataFrame()
    same = rows["verdict"] == rows["claim"].map(agreed)
    listed = rows.assign(same=same)[["model", "claim", "verdict", "same"]]
    return float(same.mean()), listed.reset_index(drop=True)
