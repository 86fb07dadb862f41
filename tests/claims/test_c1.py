"""C1: both margins, the last states, curves settled at the input, small steps, and the effect."""

import numpy as np
import pandas as pd
import pytest

from calibration.curves import (
    LAYERS,
    SHAPES,
    curves_table,
    early_change,
    early_then,
    random_turns,
    worlds_of_c1,
)
from visdepth_utils.claims.c1 import _counted, curves_of
from visdepth_utils.claims.registry import claim_entry, verdict, verdict_by
from visdepth_utils.claims.stabilisation import EARLY, FLAT, LATE, TINY

WORLDS = worlds_of_c1()
CONTROL = {"untrained": curves_table(SHAPES["drift"], seed=1000)}


def judged(name, seed=0, **changes):
    entry = claim_entry("C1") | changes
    entry["common"]["resamples"] = 400
    return verdict_by("C1", entry, curves_table(**WORLDS[name][1](seed)), CONTROL, "m")


def labels(v):
    return v.details["label"].head(3).tolist()


@pytest.mark.parametrize("name", WORLDS)
def test_known_worlds_are_judged_right(name):
    true = WORLDS[name][0]
    found = [judged(name, seed).verdict for seed in range(3)]
    wrong = {True: "not supported", False: "supported"}
    assert wrong.get(true) not in found
    if true is None:
        assert set(found) <= {"weaker", "inconclusive"}
    else:
        assert found.count("supported" if true else "not supported") >= 2


def test_most_of_a_large_change_made_early_is_settled_by_its_share_alone():
    name = "81% of ten margins early, then a drift"
    v = judged(name)
    assert v.details["within margin"].head(3).tolist() == ["no"] * 3
    assert v.details["within share"].head(3).tolist() == ["yes"] * 3
    assert judged(name, relative_share=None).verdict == "not supported"  # as it was


@pytest.mark.parametrize("states", ["in the last layer", "over the last two"])
def test_a_jump_at_the_end_stands_beside_and_does_not_decide(states):
    v = judged(f"early plateau, jump {states}")
    assert v.verdict == "supported"
    assert labels(v) == [EARLY] * 3
    assert LATE in v.details["with the last states"].tolist()
    assert "with the last states in: " in v.reason
    inside = judged(f"early plateau, jump {states}", drop_last=0)
    assert inside.verdict == "not supported"  # as it was


def test_a_curve_settled_at_the_input_is_neither_for_nor_against():
    flat, early, late = (s[0] for s in (SHAPES["flat"], early_change(3), early_then(0, 6)))
    dimension = {name: s[1] for name, s in (("early", early_change(3)), ("late", early_then(0, 6)))}
    turns = {"early": early_change(3)[2], "late": early_then(0, 6)[2]}
    for shape, expected in (
        ((flat, dimension["early"], turns["early"]), "weaker"),
        ((flat, dimension["late"], turns["late"]), "not supported"),
        ((early, dimension["late"], turns["late"]), "not supported"),
        ((late, dimension["early"], turns["early"]), "weaker"),
    ):
        v = verdict("C1", curves_table(shape, noise=0.1), control=CONTROL, p_value=False)
        assert v.verdict == expected, v.reason
        assert (FLAT in labels(v)) == (shape[0] is flat)
    v = judged("flat from the input", 1)
    assert labels(v) == [FLAT] * 3
    assert v.reason.startswith("nothing changes late, but nothing changes early either")
    assert v.effect < 0.2  # of a change that is not there, nothing is made early


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ((1, 1, 1), "there"),
        ((1, 1, 0), "weaker"),
        ((1, 1, -1), "weaker"),
        ((1, 0, 0), "weaker"),
        ((0, 0, 0), "weaker"),
        ((1, 0, -1), "weaker"),
        ((0, 0, -1), "not supported"),
        ((1, -1, -1), "not supported"),
    ],
)
def test_measures_are_counted_as_registered(signs, expected):
    assert _counted(signs) == expected


def test_angles_of_tiny_steps_are_left_out():
    shape = random_turns(early_change(3), 0)

    def speed(z):  # the steps at layers 4 and 5 are tiny: the angles at 4, 5 and 6 are theirs
        layer = np.rint(z * (LAYERS - 1))
        return np.where((layer == 4) | (layer == 5), 0.001, 0.3)

    table = curves_table(shape, speed=speed, noise=0.01)
    turns = table["metric"].eq("curvature") & table["layer"].isin([4, 5, 6])
    table.loc[turns & table["image"].eq("i0"), "value"] = np.nan  # as of a state that repeats
    curves, asked, _ = curves_of(claim_entry("C1"), table, least_update=0.01)
    assert asked == len(curves["curvature"]) == 48
    assert curves["curvature"].columns[curves["curvature"].isna().all()].tolist() == [4, 5, 6]
    v = verdict("C1", table, control=CONTROL, p_value=False)
    assert v.n_images == 48
    assert v.details.set_index("metric").loc["curvature", "left out"] == "4, 5, 6"
    assert v.thresholds["least_update"] == 0.01


def test_where_no_step_is_large_enough_curvature_says_nothing():
    v = judged("early plateau, tiny steps at random angles")
    assert labels(v) == [EARLY, EARLY, TINY]
    assert v.verdict == "weaker"
    assert np.isfinite([v.effect, *v.ci]).all()
    everything = judged("early plateau, tiny steps at random angles", least_update=0.0)
    assert labels(everything)[2] == LATE  # as it was: angles of nothing


def test_an_update_ratio_is_needed_to_know_which_steps_are_small():
    table = curves_table(early_change(3))
    with pytest.raises(ValueError, match="no metric 'update_ratio'"):
        verdict("C1", table[table["metric"] != "update_ratio"])


@pytest.mark.parametrize(
    "name", ["early plateau", "drift", "flat from the input", "late change alone"]
)
def test_the_printed_interval_holds_the_truth_in_nine_of_ten(name):
    exact = curves_table(**WORLDS[name][1](0), noise=0.0)
    truth = verdict_by("C1", claim_entry("C1"), exact, None, "m").effect
    ends = np.array([judged(name, seed).ci for seed in range(12)])
    assert ((ends[:, 0] <= truth + 1e-9) & (truth - 1e-9 <= ends[:, 1])).sum() >= 11
    assert np.diff(ends).mean() < 0.6


def test_the_effect_is_the_mean_of_the_shares_in_the_details():
    v = judged("drift", 2)
    assert v.effect == pytest.approx(v.details["early share"].head(3).mean())
    assert v.ci[0] < v.effect < v.ci[1]
    rises = verdict("C1", curves_table(SHAPES["expands"], noise=0.1), control=CONTROL)
    assert isinstance(rises.controls, pd.DataFrame)
    assert rises.controls["hi"].max() < 0.5  # a rise of the dimension is below 0, and not cut there
