"""A verdict with the plain reading and the other analyses beside it."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from calibration.truncated import DEPENDS, sweep_tables
from visdepth_utils.claims.judge import judge
from visdepth_utils.claims.published import published
from visdepth_utils.claims.registry import claim_entry, load_claims, verdict
from visdepth_utils.claims.specifications import choices, robustness, specifications
from visdepth_utils.runs.schema import checked_claims

MOST = load_claims()["common"]["specifications"]["most"]


@pytest.fixture(scope="module")
def judged():
    table, controls = sweep_tables(DEPENDS, n=40)
    return judge("C4", table, control=controls, model="m"), table, controls


def test_it_is_the_verdict_with_what_the_parts_say(judged):
    v, table, controls = judged
    alone = verdict("C4", table, control=controls, model="m")
    assert (v.verdict, v.effect, v.ci, v.p) == (alone.verdict, alone.effect, alone.ci, alone.p)
    assert v.plain == published("C4", table, control=controls)
    assert v.robustness == robustness("C4", v.analyses)
    assert len(v.analyses) == MOST
    text = str(v)
    assert f"plainly   {v.plain.verdict}: " in text
    assert v.separates in text
    assert f"analyses  {v.robustness}" in text
    assert len(text.splitlines()) <= 10


def test_the_card_says_fragile_in_its_headline(judged):
    v, *_ = judged
    for fragile, tail in ((False, ""), (True, " (fragile)")):
        card = replace(v, robustness=replace(v.robustness, fragile=fragile))
        assert str(card).splitlines()[0] == f"C4: {v.verdict.upper()}{tail}"
        assert f">{v.verdict}{tail}</td>" in card._repr_html_()
        entry = card.to_dict()
        assert (entry["verdict"], entry["robustness"]["fragile"]) == (v.verdict, fragile)
    assert str(replace(v, robustness=None)).splitlines()[0] == f"C4: {v.verdict.upper()}"


def test_its_entry_is_one_that_claims_json_may_hold(judged):
    v, *_ = judged
    (entry,) = checked_claims(json.dumps([v.to_dict()]))
    assert entry["plain"]["verdict"] == v.plain.verdict
    assert entry["robustness"]["line"] == str(v.robustness)


def test_single_changes_are_always_among_the_analyses(judged):
    v, *_ = judged
    names = list(choices(claim_entry("C4")))
    first = v.analyses.iloc[0]
    changed = (v.analyses[names] != first[names]).sum(axis=1)
    singles = sum(len(options) - 1 for options in choices(claim_entry("C4")).values())
    assert (changed == 1).sum() == singles
    assert (changed > 1).any()
    assert not v.analyses.duplicated(names).any()


def test_an_option_that_was_not_measured_is_named_once(judged):
    _, table, controls = judged
    found = specifications("C4", table, control=controls)
    lacking = found[found["verdict"] == "not testable"]
    assert (lacking["positions"] == "closed up").sum() == 1
    rest = found[found["positions"] == "kept"]
    options = choices(claim_entry("C4"))
    dropped = lacking.drop(lacking.index[lacking["positions"] == "closed up"])
    names = [name for name in options if name != "positions"]
    left = {n: len(options[n]) - sum(dropped[n] != found.iloc[0][n]) for n in names}
    product = 1
    for count in left.values():
        product *= count
    assert len(rest) - len(dropped) == product


def test_where_the_registered_analysis_cannot_be_made_it_stands_alone():
    table, controls = sweep_tables(DEPENDS, n=40)
    v = judge("C4", table[table["task"] != "caption"], control=controls)
    assert v.verdict == "not testable"
    assert len(v.analyses) == 1
    assert str(v.robustness) == "no analysis could be made"


def test_a_claim_of_ours_without_choices_is_its_verdict_alone():
    entry = {"claim": "C1", "model": "m", "verdict": "supported", "effect": 1.0, "lo": 1, "hi": 1}
    verdicts = pd.DataFrame([entry | {"control": 0.0, "p": 0.01, "images": 48, "run": "r"}])
    v = judge("C9", verdicts, model="m")
    assert v.plain is None
    assert v.robustness is None
    assert "no such statement" in v.separates
    assert "analyses" not in str(v)
