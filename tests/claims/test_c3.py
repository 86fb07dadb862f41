"""The rule of C3 on grids whose answer is known."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.grids import LAYERS, NOT_AT_ALL, SAME, always, up_to
from calibration.grids import grid_table as simulate
from visdepth_utils.claims.interchange import layer_of_most_harm
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict


def decide(*args, **options):
    return verdict("C3", simulate(*args, **options), model="simulated")


def test_the_layer_of_most_harm_is_where_another_image_lowers_the_score_most():
    columns = ["source_layer", "layer", "control", "correct"]
    rows = [
        (0, 0, "other image", 0.0),  # before the first that counts
        (2, 2, "other image", 1.0),
        (2, 2, "other image", 0.0),
        (3, 3, "other image", 0.0),
        (3, 3, "other image", 0.5),
        (4, 4, "other image", 0.0),  # the mean counts, not the worst
        (4, 4, "other image", 1.0),
        (2, 5, "noise", 0.0),  # no other image
        (1, 5, "other image", 0.0),  # from a source before the first
        (5, 5, "other image", 0.25),
    ]
    table = pd.DataFrame(rows, columns=columns)
    assert layer_of_most_harm(table, 2) == 3
    assert layer_of_most_harm(table, 4) == 5
    assert layer_of_most_harm(table, 0) == 0
    tie = table[table["layer"].isin([2, 4])]
    assert layer_of_most_harm(tie, 2) == 2


@pytest.mark.parametrize(
    ("image", "options", "expected", "why"),
    [
        (SAME, {}, "supported", "survive the states of any other layer"),
        (NOT_AT_ALL, {}, "not supported", "answers are lost"),
        (always(0.97, 0.2), {}, "not supported", "answers are lost"),
        (always(0.5, 0.0), {}, "not supported", "the next token shifts"),
        (up_to(2, (0.97, 0), (0.1, 0.6)), {}, "weaker", "at small gaps only"),
        (up_to(5, (0.99, 0), (0.9, 0.15)), {}, "weaker", "large gaps"),
        (SAME, {"text": SAME}, "weaker", "text states in their place costs as little"),
        (SAME, {"noise": SAME}, "weaker", "noise of the same size in their place costs as little"),
        (SAME, {"text": None}, "inconclusive", "no complete control with text states"),
        (SAME, {"noise": None}, "inconclusive", "no complete control with noise"),
        (SAME, {"accuracy": 0.2}, "not testable", "nothing to lose"),
        (SAME, {"unread": LAYERS[1:]}, "not testable", "nobody reads them"),
        (SAME, {"other": 0.89}, "not testable", ""),
        (SAME, {"n": 20}, "inconclusive", "20 images"),
        (NOT_AT_ALL, {"n": 20}, "inconclusive", "20 images"),
        (SAME, {"n": 48}, "inconclusive", "can hide in fewer than 99"),
        (NOT_AT_ALL, {"n": 48}, "not supported", "answers are lost"),
        (always(0.82, 0.02), {"n": 40, "spread": 1.2}, "inconclusive", "too wide"),
    ],
)
def test_verdict_on_known_grids(image, options, expected, why):
    for seed in range(2):
        v = decide(image, seed=seed, **options)
        assert v.verdict == expected, v.reason
        assert why in v.reason


def test_effect_is_the_index_over_layers_that_are_read():
    v = decide(always(0.9, 0.0), spread=0.0)
    assert v.effect == pytest.approx(0.9)
    assert v.ci == pytest.approx((0.9, 0.9))
    controls = v.controls.set_index("control")
    noise = controls.loc["noise of the same size"]
    assert noise["effect"] == pytest.approx(0.5)
    assert noise["contrast"] == pytest.approx(0.4)
    assert v.control_effect == pytest.approx(0.5)
    assert v.thresholds["early_layer"] == 3


def test_layers_that_nobody_reads_do_not_dilute_a_loss():
    v = decide(always(0.5, 0.05), unread=(7, 9, 11), spread=0.0)
    rows = v.details.set_index("measure")["estimate"]
    loss = rows.filter(like="score lost, all").iloc[0]
    diluted = rows.filter(like="nobody reads").iloc[0]
    assert diluted == pytest.approx(loss * 2 / 5)  # two of the five layers behind one third
    assert v.effect == pytest.approx(0.5)


def test_gaps_are_split_in_thirds_and_directions_can_be_told_apart():
    table = simulate()
    measures = "\n".join(verdict("C3", table).details["measure"])
    assert "large gaps (6 to 8 layers)" in measures
    assert "small gaps (2 to 2 layers)" in measures
    backward = (table["source_layer"] > table["layer"]) & (table["modality"] == "image")
    table.loc[backward & (table["control"] == ""), ["kl", "correct"]] = [3.0, 0.0]
    assert verdict("C3", table).verdict == "not supported"
    found = sensitivity("C3", table).set_index("variant")["verdict"]
    assert found["source layers from earlier layers only"] == "supported"
    assert found["rescaled to the length of the own states"] == "not testable"


def test_rescaled_rows_count_only_where_they_are_asked_for():
    table = simulate()
    apart = (table["source_layer"] != table["layer"]) & (table["control"] == "")
    worse = table[apart].assign(rescaled=True, kl=5.0, correct=0.0)
    both = pd.concat([table, worse], ignore_index=True)
    assert verdict("C3", both).effect == verdict("C3", table).effect
    found = sensitivity("C3", both).set_index("variant")["verdict"]
    assert found["as registered"] == "supported"
    assert found["rescaled to the length of the own states"] == "not supported"


def test_missing_values():
    table = simulate()
    one, many = table.copy(), table.copy()
    one.loc[(one["image"] == "i0") & (one["layer"] == 5), "correct"] = np.nan
    assert (verdict("C3", one).verdict, verdict("C3", one).n_images) == ("supported", 99)
    many.loc[many["image"].isin([f"i{i}" for i in range(30)]), "kl"] = np.nan
    v = verdict("C3", many)
    assert v.verdict == "not testable"
    assert "30 of 100 images have no value" in v.reason
    assert np.isnan(v.effect)
    assert json.loads(json.dumps(v.to_dict(), allow_nan=False))["effect"] is None
    nothing = verdict("C3", table.assign(correct=np.nan))
    assert nothing.verdict == "not testable"
    text = table["modality"] == "text"
    gap = table.assign(kl=table["kl"].where(~text | (table["image"] != "i3")))
    assert "no complete control with text states" in verdict("C3", gap).reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="kl"), "lacks column.*kl"),
        (lambda t: t[t["modality"] == "text"], "no image states"),
        (lambda t: t[t["control"] != "other image"], "'other image'"),
        (
            lambda t: t[(t["source_layer"] != t["layer"]) | (t["control"] != "")],
            "source_layer = layer",
        ),
        (lambda t: t[t["source_layer"].isin([1, 11]) & t["layer"].isin([1, 11])], "low stride"),
    ],
)
def test_bad_tables_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        verdict("C3", change(simulate()))


def test_shallow_decoders_and_inexact_interventions_are_not_testable():
    table = simulate()
    shallow = verdict("C3", table[(table["layer"] <= 3) & (table["source_layer"] <= 3)])
    assert shallow.verdict == "not testable"
    assert "4 decoder layers" in shallow.reason
    inexact = table.assign(kl=table["kl"] + 0.05)
    assert "not exact" in verdict("C3", inexact).reason


def test_unit_of_resampling_is_the_image():
    table = simulate(always(0.9, 0.01))
    copies = pd.concat([table.assign(sample=table["sample"] + f"-{k}") for k in range(3)])
    a, b = verdict("C3", table), verdict("C3", copies)
    assert a.ci == pytest.approx(b.ci)
    assert a.n_images == b.n_images == 100


@pytest.mark.parametrize(
    "null",
    [
        # 3 in 100 pictures lose every answer: the worst case for a bootstrap of losses
        {"image": always(0.97, 0.03), "concentrated": True, "accuracy": 1.0},
        {"image": always(0.80, 0.0), "spread": 0.6},  # the index is just at its margin
        {"image": SAME, "noise": SAME},
    ],
    ids=["loss at its margin", "index at its margin", "noise does as little"],
)
def test_nulls_are_rarely_called_supported(null):
    found = [decide(seed=s, **null).verdict for s in range(40)]
    assert found.count("supported") <= 5  # 2 expected at 5%; 6 or more has p = 0.01


def test_a_clear_effect_is_mostly_found():
    found = [decide(always(0.93, 0.004), seed=s).verdict for s in range(20)]
    assert found.count("supported") >= 16


def test_every_number_of_the_rule_is_in_the_record():
    v, entry = decide(), claim_entry("C3")
    for name in ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share"):
        assert v.thresholds[name] == entry["common"][name]
    for name, margin in entry["margins"].items():
        assert v.thresholds[f"margin_{name}"] == margin["value"]
    assert v.thresholds["min_images_for_no_loss"] == entry["min_images"]
    assert "(interchange index)" in str(v)
    assert "the larger of text states and noise" in str(v)
    assert len(str(v).splitlines()) <= 10


def other_costs(share):
    """Interchangeable, and another picture behind the first layer costs this share of the score."""
    table = simulate(spread=0.1)
    plain = table[(table["source_layer"] == table["layer"]) & (table["control"] == "")]
    right = plain.groupby("image")["correct"].first()
    deep = (table["control"] == "other image") & (table["layer"] > 1)
    lost = set(right[right == 1].index[: round(share * len(right))])
    kept = table.loc[deep, "image"].map(lambda image: right[image] * (image not in lost))
    table.loc[deep, "correct"] = kept
    return verdict("C3", table, p_value=False)


@pytest.mark.parametrize(
    ("share", "expected", "why"),
    [
        (0.0, "not testable", "even another picture's states cost only 0 points"),
        (0.08, "not testable", "cost only 8 points"),
        (0.12, "inconclusive", "it is unclear whether another picture's states cost 10 points"),
        (0.5, "supported", "survive"),
    ],
)
def test_where_no_loss_could_be_seen_none_is_called_small(share, expected, why):
    v = other_costs(share)
    assert (v.verdict, why in v.reason) == (expected, True), v.reason
