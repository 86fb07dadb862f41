"""C9, verdicts agree across models: the rule behind the entry in data/claims.yaml.

Models are not pooled: claims are counted on which all trained models say the same, beside the
probability of as many by chance.
"""

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pandas as pd
from scipy.stats import binom, binomtest

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
    level, least = spec["common"]["level"], spec["margins"]["agreement"]["value"]
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    found["thresholds"] = {k: spec[k] for k in ("decided", "untrained", "min_models")}
    found["thresholds"] |= {"level": level, "margin_agreement": least}
    found["details"] = counts.assign(counted=counts["models"] >= spec["min_models"])
    if not n:
        why = f"no claim was decided on {spec['min_models']} trained models or more"
        return found | said("not testable", f"{why}: run more models")
    interval = binomtest(agree, n).proportion_ci(level)
    found |= {"effect": agree / n, "ci": (float(interval.low), float(interval.high))}
    shared, found["controls"] = _control(rows[untrained], asked)
    found["control_effect"] = shared
    own = rows[~untrained & rows["claim"].isin(asked["claim"])]
    as_many, as_few = chance(own, agree), float(binom.cdf(agree, n, least))
    found["details"] = found["details"].assign(by_chance=as_many)
    count = f"{agree} of {n} claims have one verdict on all trained models"
    if as_few <= 1 - level:
        return found | said("not supported", f"{count}, fewer than half beyond doubt")
    count = f"{count} (as many by chance: p = {as_many:.3f})"
    if not (as_many <= 1 - level and agree / n > least):
        return found | said("inconclusive", f"{count}: too few claims and models to tell")
    if math.isnan(shared):
        return found | said("inconclusive", f"{count}, but no untrained model was asked them")
    if shared >= least:
        given = f"untrained models are given {shared:.0%} of these verdicts too"
        return found | said("weaker", f"{count}, but {given}: the method may agree with itself")
    return found | said("supported", count)


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


def chance(rows: pd.DataFrame, agree: int) -> float:
    """Probability of so many agreements or more if each model's verdicts were dealt at random.

    Each model keeps its own verdicts and the claims that it decides; which verdict falls on which
    claim is drawn, for every model by itself. Exact, by inclusion and exclusion: for every set of
    claims, the probability that on each of them all its models are dealt one verdict.

    Args:
        rows: Decided verdicts, columns ``claim, model, verdict``.
        agree: Claims on which all models that decide them agree.

    Returns:
        The probability; 1 where a model's verdicts are all the same word and so cannot differ.
    """
    held = {model: Counter(own["verdict"]) for model, own in rows.groupby("model")}
    words = sorted(set(rows["verdict"]))
    # Sets of claims that have the same models and the same words are as likely: counted once.
    sets: Counter[tuple[tuple[tuple[str, ...], str], ...]] = Counter({(): 1})
    for _, own in rows.groupby("claim"):
        models = tuple(sorted(own["model"]))
        for taken, ways in list(sets.items()):
            for word in filter(lambda w: all(held[m][w] for m in models), words):
                sets[tuple(sorted((*taken, (models, word))))] += ways
    sums = [Fraction(0)] * (rows["claim"].nunique() + 1)
    for taken, ways in sets.items():
        sums[len(taken)] += ways * _dealt(taken, held)
    if agree == 0:
        return 1.0
    terms = (
        (-1) ** (size - agree) * math.comb(size - 1, agree - 1) * sums[size]
        for size in range(agree, len(sums))
    )
    return float(sum(terms))


def _dealt(
    taken: tuple[tuple[tuple[str, ...], str], ...], held: dict[str, Counter[str]]
) -> Fraction:
    """Probability that all models of some claims are dealt these words."""
    out = Fraction(1)
    for model, own in held.items():
        dealt = Counter(word for models, word in taken if model in models)
        ways = math.prod(math.perm(own[word], k) for word, k in dealt.items())
        out *= Fraction(ways, math.perm(own.total(), dealt.total()))
    return out


def _control(untrained: pd.DataFrame, asked: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """Share of the agreed verdicts that untrained models are given too; NaN if none was asked."""
    agreed = asked[asked["agree"]].set_index("claim")["verdict"]
    rows = untrained[untrained["claim"].isin(agreed.index)]
    if rows.empty:
        return NAN, pd.DataFrame()
    same = rows["verdict"] == rows["claim"].map(agreed)
    listed = rows.assign(same=same)[["model", "claim", "verdict", "same"]]
    return float(same.mean()), listed.reset_index(drop=True)
