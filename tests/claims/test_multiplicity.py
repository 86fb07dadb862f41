"""Holm over claims and counts over models, against answers worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.curves import curves_table, early_change, image_table
from visdepth_utils.claims.multiplicity import after_holm, holm, holm_over_claims, replications
from visdepth_utils.claims.registry import claim_entry, verdict


def entry(claim, said, p=None, model="a"):
    return {"claim": claim, "model": model, "verdict": said, "p": p}


def test_holm_of_plain_numbers():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert len(holm([])) == 0
    for bad in ([0.1, np.nan], [1.2], [-0.1]):
        with pytest.raises(ValueError, match="p values"):
            holm(bad)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_numbers_keep_their_order(p):
    raw, family = np.array(p), holm(p)
    assert (raw <= family + 1e-12).all()
    assert (family <= np.minimum(raw * len(p), 1) + 1e-12).all()
    assert (np.diff(family[np.argsort(raw, kind="stable")]) >= 0).all()


def test_holm_known_answer():
    found = holm_over_claims(
        [
            entry("C3", "supported", 0.03),
            entry("C1", "supported", 0.01),
            entry("C2", "supported", 0.04),
            entry("C4", "not testable"),
        ]
    )
    assert found["claim"].tolist() == ["C1", "C2", "C3", "C4"]
    assert found["p_holm"].tolist()[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(found["p_holm"].iloc[3]) and math.isnan(found["p"].iloc[3])
    assert found["holds"].tolist() == [True, False, False, False]


def test_claims_that_fail_stay_in_the_family_and_models_are_apart():
    many = [entry("C1", "supported", 0.02)]
    many += [entry(f"C{k}", said) for k, said in ((2, "weaker"), (3, "not supported"))]
    found = holm_over_claims([*many, entry("C1", "supported", 0.02, "b")]).set_index("model")
    assert found.loc["a", "p_holm"].tolist() == pytest.approx([0.06, 1, 1])
    assert found.loc["b", "p_holm"] == pytest.approx(0.02)
    assert not found.loc["a", "holds"].any()
    assert found.loc["b", "holds"]


def test_counts_before_and_after_the_correction():
    own = [entry("C1", "supported", 0.01), entry("C2", "supported", 0.04), entry("C3", "weaker")]
    other = [entry("C1", "not supported", math.nan, "b"), entry("C2", "not testable", None, "b")]
    found = after_holm([*own, *other])
    assert found.loc["a"].tolist() == pytest.approx([3, 2, 1, 0.03])
    assert found.loc["b"].tolist() == pytest.approx([1, 0, 0, 1])


def test_nothing_gives_an_empty_table():
    assert list(holm_over_claims([])) == ["model", "claim", "verdict", "p", "p_holm", "holds"]
    assert replications([]).empty


def test_bad_entries_are_named():
    with pytest.raises(ValueError, match="C1 on a is supported but has no p value"):
        holm_over_claims([entry("C1", "supported")])
    with pytest.raises(ValueError, match="C1 on a is supported but has no p value"):
        holm_over_claims([entry("C1", "supported", math.nan)])  # as a table holds it
    with pytest.raises(ValueError, match="two entries for C1 on a"):
        holm_over_claims([entry("C1", "weaker")] * 2)
    with pytest.raises(ValueError, match="unknown verdict 'yes'"):
        replications([entry("C1", "yes")])


def test_replications_known_answer():
    said = ["supported", "supported", "not supported", "not testable"]
    rows = [entry("C1", v, 0.01, m) for v, m in zip(said, "abcd", strict=True)]
    found = replications([*rows, entry("C2", "not testable")]).set_index("claim")
    row = found.loc["C1"]
    assert (row["models"], row["supported"], row["not testable"]) == (3, 2, 1)
    assert row["p"] == pytest.approx(3 * 0.05**2 * 0.95 + 0.05**3)
    assert found.loc["C2", "models"] == 0 and math.isnan(found.loc["C2", "p"])


def test_p_is_the_smallest_level_at_which_the_rule_still_holds():
    """Found by asking the rule again at that level, and just below it."""
    control = image_table("drift", seed=99)
    strong = verdict("C1", curves_table(early_change(6)), control=control)
    entry_ = claim_entry("C1")
    assert strong.p == 2 / entry_["common"]["resamples"]
    assert strong.to_dict()["p"] == strong.p
    close = curves_table(early_change(1.6), seed=3)
    v = verdict("C1", close, control=control)
    assert v.verdict == "supported"
    assert 2 / entry_["common"]["resamples"] < v.p <= 0.05

    from visdepth_utils.claims.registry import verdict_by

    def at(alpha):
        common = {**entry_["common"], "level": 1 - alpha}
        return verdict_by("C1", {**entry_, "common": common}, close, control, "").verdict

    assert at(v.p) == "supported"
    assert at(v.p / 1.11) != "supported"


def test_other_verdicts_have_no_p():
    v = verdict("C1", image_table("drift"), control=image_table("drift", seed=9))
    assert v.verdict == "not supported" and math.isnan(v.p)
    assert v.to_dict()["p"] is None
    table = holm_over_claims([{**v.to_dict(), "model": "m"}])
    assert isinstance(table, pd.DataFrame) and table["p"].tolist() == [1.0]
