"""The calibration: its page is what the command makes, and rules do not err beyond chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration import measure as module
from calibration.measure import (
    COUNTS,
    RESAMPLES,
    SIMULATIONS,
    faults,
    least_power,
    markdown,
    measure,
    most_false,
    read_table,
    unexplained,
)
from calibration.scenarios import SCENARIOS
from visdepth_utils.claims.registry import claim_entry, load_claims

PAGE = Path(__file__).resolve().parents[2] / "docs" / "calibration.md"
FEW = 3


@pytest.fixture(scope="module")
def page():
    return read_table(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def few():
    """The cheap claims again, a few seeds each; C5's tables alone take seconds each."""
    cheap = [s for s in SCENARIOS if s.claim in ("C1", "C3", "C7") or "power_at" in s.name]
    cheap = [s for s in cheap if s.claim != "C5"]
    return measure(dict.fromkeys(SIMULATIONS, FEW), scenarios=cheap)


def test_the_page_has_the_scenarios_and_settings_of_the_code(page):
    table, resamples = page
    assert resamples == RESAMPLES
    rows = list(zip(table["claim"], table["world"], table["simulations"], strict=True))
    assert rows == [(s.claim, s.name, SIMULATIONS[s.claim]) for s in SCENARIOS]
    assert table["wanted"].tolist() == [s.wanted for s in SCENARIOS]


def test_the_page_shows_no_fault_but_those_it_explains(page):
    assert unexplained(page[0]) == []
    assert page[0]["coverage"].dropna().between(0, 1).all()


def test_a_few_simulations_again_agree_with_the_page(page, few):
    assert faults(few) == []
    table = page[0].set_index(["claim", "world"])
    for row in few.to_dict("records"):
        said = table.loc[(row["claim"], row["world"])]
        # The seeds are the first of the page's: what is supported here is among those there.
        for name in COUNTS:
            assert row[name] <= said[name]
            assert FEW - row[name] <= said["simulations"] - said[name]


def test_the_named_effects_are_those_that_are_simulated(page):
    table = page[0]
    true = table[table["world"].str.startswith("power_at")].set_index("claim")["truth"]
    named = {"C3": "index", "C4": "contrast", "C5": "difference", "C7": "contrast"}
    for claim, key in named.items():
        assert true[claim] == pytest.approx(claim_entry(claim)["power_at"][key], abs=0.025)
    # Of C2 the margins over those of an image that changes little late, of C1 the early share.
    assert true["C2"] == pytest.approx(claim_entry("C2")["power_at"]["margins"], abs=0.15)
    assert true["C1"] > 0.9


def test_every_claim_with_a_rule_is_calibrated_and_names_its_effect():
    for claim in {s.claim for s in SCENARIOS}:
        own = [s for s in SCENARIOS if s.claim == claim]
        assert sum(s.name.startswith("power_at") for s in own) == 1
        assert all(s.true for s in own if s.name.startswith("power_at"))
        assert sum(not s.true for s in own) >= 3
        assert len(claim_entry(claim)["power_at"]["says"]) > 10
    assert len({(s.claim, s.name) for s in SCENARIOS}) == len(SCENARIOS)


def test_bounds_of_counts_are_binomial():
    assert most_false(100) == 11  # P(X > 11) = 0.0043, P(X > 10) = 0.0115
    assert least_power(100) == 82  # P(X < 82) = 0.0046
    assert most_false(0) == 0


def test_faults_can_be_found(few):
    assert faults(few.assign(supported=few["simulations"])) != []
    refuted = few.assign(**{"not supported": few["simulations"]})
    assert any(": not supported 3 of 3" in fault for fault in faults(refuted))
    none = few.assign(supported=0, simulations=50)
    assert [f.split(",")[0] for f in faults(none)] == [
        "C0",
        "C1",
        "C2",
        "C3",
        "C4",
        "C6",
        "C7",
        "C8",
    ]


def test_an_always_true_rule_is_noticed(monkeypatch):
    table, control = SCENARIOS[0].make(0)
    always = module.verdict(SCENARIOS[0].claim, table, control=control)
    found = replace(always, verdict="supported")
    monkeypatch.setattr(module, "verdict", lambda *_, **__: found)
    table = measure(dict.fromkeys(SIMULATIONS, 6), scenarios=SCENARIOS[:1])
    assert "supported 6 of 6" in faults(table)[0]


def test_page_and_table_are_the_same_numbers(few):
    text = markdown(few, resamples=77)
    table, resamples = read_table(text)
    assert resamples == 77
    assert str(load_claims()["common"]["resamples"]) in text
    for name in (*COUNTS, "made"):
        assert table[name].tolist() == few[name].tolist()
    np.testing.assert_allclose(table["truth"], few["truth"].round(2), atol=1e-9)
    with pytest.raises(ValueError, match="no calibration table"):
        read_table("# nothing")
