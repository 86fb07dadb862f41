"""The rule of C6 on simulated scores whose recovered share is known."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration import recovered
from calibration.recovered import ENDED, FALLING, LOST, TRAININGS, curve_of
from visdepth_utils.claims import c6
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict, verdict_by
from visdepth_utils.claims.specifications import choices, specifications

simulate = recovered.recovery_table


def decide(shares, **options):
    return verdict("C6", simulate(shares, **options), model="simulated")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("same_images", [False, True])
def test_known_truths(seed, same_images):
    options = {"seed": seed, "same_images": same_images}
    yes = decide({"caption": 0.9, "chart": 0.2}, **options)
    assert yes.verdict == "supported" and yes.effect == pytest.approx(0.7, abs=0.12)
    neither = decide({"caption": 0.1, "chart": 0.1}, **options)
    assert neither.verdict == "not supported" and "of what they lost back" in neither.reason
    other = decide({"caption": 0.8, "chart": 0.95}, **options)
    assert other.verdict == "not supported" and "charts recover " in other.reason
    words = decide({"caption": 0.9, "chart": 0.2}, shuffled=0.9, **options)
    assert words.verdict == "weaker" and words.control_effect == pytest.approx(0.9, abs=0.1)
    assert "as much as when trained with shuffled pictures" in words.reason
    unclear = decide({"caption": 0.5, "chart": 0.2}, **options)
    assert unclear.verdict in ("inconclusive", "not supported")


def test_the_share_is_a_ratio_of_means():
    table = simulate({"caption": 0.9, "chart": 0.2}, n=40)
    v = verdict("C6", table)
    means = table.groupby(["task", "state"])["score"].mean().unstack("state")
    share = (means["recovered"] - means["truncated"]) / (means["full"] - means["truncated"])
    assert v.effect == pytest.approx(share["caption"] - share["chart"])
    rows = v.details.set_index("measure")["estimate"]
    assert rows["chart: share back, recovered"] == pytest.approx(share["chart"])


def test_what_cannot_be_told_is_said():
    shares = {"caption": 0.9, "chart": 0.2}
    assert "20 images" in decide(shares, n=20).reason
    nothing = decide(shares, full=LOST)
    assert nothing.verdict == "not testable" and "does not lower" in nothing.reason
    bare = decide(shares, shuffled=None)
    assert bare.verdict == "inconclusive" and "was not tried" in bare.reason
    elsewhere = decide(shares, cut=5)
    assert elsewhere.verdict == "not testable" and "at this depth" in elsewhere.reason
    table = simulate(shares)
    untrained = verdict("C6", table[table["state"].isin(["full", "truncated"])])
    assert untrained.verdict == "not testable" and "no adapter was trained" in untrained.reason
    alone = verdict("C6", table[table["task"] == "caption"])
    assert alone.verdict == "not testable" and "'chart' was not measured" in alone.reason
    gone = table.copy()
    gone.loc[(gone["task"] == "chart") & gone["sample"].str.endswith(("1", "2", "3")), "score"] = (
        np.nan
    )
    assert "no value in every state" in verdict("C6", gone).reason
    shallow = verdict("C6", table.assign(depth=table["depth"].clip(upper=5)))
    assert shallow.verdict == "not testable" and "layers" in shallow.reason
    with pytest.raises(ValueError, match=r"table lacks column\(s\) cut"):
        verdict("C6", table.drop(columns="cut"))


def test_what_the_cut_costs_is_asked_before_training():
    table = simulate({"caption": 0.9, "chart": 0.2})
    found = c6.lost(claim_entry("C6"), table[table["state"].isin(["full", "truncated"])])
    assert {task: gap.lo > 0 for task, gap in found.items()} == {"caption": True, "chart": True}
    same = c6.lost(claim_entry("C6"), simulate({"chart": 0.5}, full=LOST))
    assert not same["chart"].lo > 0


@pytest.mark.parametrize(("layers", "depth"), [(12, 4), (8, 3), (28, 9), (6, 2)])
def test_the_cut_is_a_third_of_the_layers(layers, depth):
    assert c6.cut_depth(claim_entry("C6"), layers) == depth


def test_variants_and_the_record():
    shares = {"caption": 0.9, "chart": 0.2, "vqa": 0.9}
    found = sensitivity("C6", simulate(shares)).set_index("variant")["verdict"]
    assert found["as registered"] == "supported"
    assert found["against answers to questions"] in ("inconclusive", "not supported")
    assert found["against reasoning"] == found["cut at two thirds"] == "not testable"
    deep = simulate({"caption": 0.9, "chart": 0.2}, cut=8)
    both = pd.concat([simulate(shares), deep])
    found = sensitivity("C6", both).set_index("variant")["verdict"]
    assert found["cut at two thirds"] == "supported"
    v, entry = verdict("C6", simulate(shares)), claim_entry("C6")
    record = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert record["thresholds"]["margin_recovered"] == entry["margins"]["recovered"]["value"]
    assert record["thresholds"]["distill"] == entry["distill"]
    assert record["thresholds"]["convergence"]["share"] == entry["convergence"]["share"]
    shuffled = verdict("C6", simulate(shares).sample(frac=1, random_state=1))
    assert shuffled.verdict == v.verdict and shuffled.effect == pytest.approx(v.effect, abs=1e-12)


YES = {"caption": 0.9, "chart": 0.2}


def test_training_that_has_not_converged_says_nothing():
    """e**-1 is left of an exponential fall: the last quarter of the rates brings a sixth of it."""
    for shares in (YES, {"caption": 0.24, "chart": 0.1}, {"caption": 0.6, "chart": 0.9}):
        v = decide(shares, curves=FALLING)
        late = (np.exp(-0.75) - np.exp(-1)) / (1 - np.exp(-1))
        assert v.verdict == "inconclusive" and v.reason.startswith("not converged (captions: ")
        assert v.reason.count(f"{late:.0%} of the fall") == 2
    rows = v.details.set_index("measure")["label"]
    assert rows["caption: share back, recovered, rate 0.001, 200 steps, seed 0"] == "not converged"


@pytest.mark.parametrize(("falls", "limit"), [(0.049, True), (0.051, False)])
def test_the_limit_is_a_share_of_the_whole_fall_by_the_clock_of_the_rates(falls, limit):
    curve = [[0, 0.0, 1.0], [100, 0.75, 0.2 + 0.8 * falls], [150, 0.99, 0.2], [200, 1.0, 0.3]]
    v = decide(YES, curves=json.dumps(curve))
    assert (v.verdict == "supported") is limit


@pytest.mark.parametrize(
    ("curve", "why"),
    [("", "no validation loss was kept"), ("[[0, 0, 0.5], [200, 1, 0.6]]", "never fell")],
)
def test_no_record_and_a_loss_that_never_fell_are_not_convergence(curve, why):
    v = decide(YES, curves=curve)
    assert v.verdict == "inconclusive" and f"captions: {why}" in v.reason.replace(
        "the validation loss never", "never"
    )


def test_a_table_of_before_names_what_it_lacks():
    old = simulate(YES).drop(columns=["rate", "seed", "steps", "curve"])
    v = verdict("C6", old)
    assert v.verdict == "inconclusive" and "no validation loss was kept" in v.reason
    assert v.effect == pytest.approx(verdict("C6", simulate(YES)).effect)


def test_a_control_that_has_not_converged_supports_nothing_and_refutes_nothing_either():
    curves = {"recovered": ENDED, "shuffled": FALLING, "full trained": ENDED}
    v = decide(YES, curves=curves)
    assert v.verdict == "inconclusive" and v.reason.startswith("the control has not converged")
    assert decide({"caption": 0.1, "chart": 0.1}, curves=curves).verdict == "not supported"


def test_a_rate_too_low_is_seen_beside_a_better_one_and_does_not_count():
    """It looks flat, but another training fell much further: the answer is the other's."""
    stuck = curve_of(8.0, floor=0.4)
    good = simulate(YES, trainings=[(2e-3, 0)])
    trained = ~good["state"].isin(["full", "truncated"])
    low = simulate({"caption": 0.2, "chart": 0.2}, trainings=[(5e-4, 0)], curves=stuck)
    both = pd.concat([good, low[~low["state"].isin(["full", "truncated"])]])
    alone, beside = verdict("C6", good), verdict("C6", both)
    assert trained.any() and alone.verdict == beside.verdict == "supported"
    assert beside.effect == pytest.approx(alone.effect)
    labels = beside.details.set_index("measure")["label"]
    assert labels["caption: share back, recovered, rate 0.0005, 200 steps, seed 0"] == (
        "not converged"
    )
    assert labels["caption: share back, recovered, rate 0.002, 200 steps, seed 0"] == "converged"
    only = claim_entry("C6") | {"trainings": {"rates": [5e-4], "seeds": "all"}}
    v = verdict_by("C6", only, both)
    assert v.verdict == "inconclusive" and "75% further" in v.reason
    none = verdict_by("C6", claim_entry("C6") | {"trainings": {"rates": [9], "seeds": "all"}}, both)
    assert none.verdict == "not testable" and "at this rate and seed" in none.reason


def test_several_trainings_are_averaged_and_their_spread_is_in_the_interval():
    table = simulate(YES)
    one, more = verdict("C6", table), [table]
    for rate, seed in TRAININGS[1:]:  # all with the same score of every image
        more.append(table[table["rate"].notna()].assign(rate=rate, seed=seed))
    alike = verdict("C6", pd.concat(more))
    assert alike.effect == pytest.approx(one.effect)
    assert np.subtract(*alike.ci) == pytest.approx(np.subtract(*one.ci), rel=0.1)
    label = one.details.set_index("measure")["label"]["caption: share back, recovered"]
    assert label == "one training: images only"
    table = simulate(YES, trainings=TRAININGS[:2])
    first = (table["state"] == "recovered") & (table["rate"] == TRAININGS[0][0])
    first &= (table["task"] == "caption") & (table["seed"] == TRAININGS[0][1])
    means = table.groupby(["task", "state"])["score"].mean().unstack("state")
    table.loc[first, "score"] = means.loc["caption", "truncated"]  # this one gives nothing back
    v = verdict("C6", table)
    rows = v.details.set_index("measure")
    share = rows.loc["caption: share back, recovered"]
    assert share["label"] == "2 trainings"
    assert share["estimate"] == pytest.approx(
        one.details.set_index("measure")["estimate"][share.name] / 2
    )
    half = share["estimate"] * np.sqrt(2)  # both resampled trainings are the same: one in two times
    assert share["hi"] == pytest.approx(share["estimate"] + half, abs=0.1)
    assert share["lo"] == pytest.approx(share["estimate"] - half, abs=0.1)
    assert v.verdict == "inconclusive"


def test_few_images_do_not_say_as_much():
    """A true difference of 0.05 at 30 images: called none at most one time in twenty."""
    found = [
        decide({"caption": 0.75, "chart": 0.7}, n=30, seed=s).verdict == "not supported"
        for s in range(30)
    ]
    assert sum(found) <= 4  # more have probability below 2% at a rate of 5%
    clear = decide({"caption": 0.7, "chart": 0.95}, n=200)
    assert clear.verdict == "not supported" and "charts recover more than" in clear.reason
    same = simulate({"caption": 0.9, "chart": 0.9}, same_images=True)
    chart = same[same["task"] == "caption"].assign(task="chart")  # equal to the last coin
    v = verdict("C6", pd.concat([same[same["task"] == "caption"], chart]))
    assert v.verdict == "not supported" and "as much as captions" in v.reason


def test_the_first_option_of_each_choice_is_the_registered_one():
    both = pd.concat([simulate(YES, trainings=TRAININGS), simulate(YES, cut=8)])
    analyses = specifications("C6", both, most=40)
    assert analyses["verdict"].iloc[0] == "supported"
    made = analyses[analyses["verdict"] != "not testable"]
    assert {0.002, "all"} <= set(made["rate"]) <= {"all", 0.001, 0.002}  # 5e-4 was not trained
    for options in choices(claim_entry("C6")).values():
        assert next(iter(options.values())) == {}
    assert set(made["cut"]) == {"one third", "two thirds"}
