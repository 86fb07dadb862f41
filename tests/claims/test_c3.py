"""The rule of C3 on grids whose answer is known."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.grids import LAYERS, NOT_AT_ALL, SAME, always, up_to
from calibration.grids import grid_table as simulate
from visdepth_utils.claims.interchange import gap_parts, gap_slope, layer_of_most_harm
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict, verdict_by

HARDLY = "the states hardly differ: random vectors of the same size do as little"
DIFFER = "they differ and are still exchangeable: random vectors of the same size do more harm"


def decide(*args, p_value=True, **options):
    return verdict("C3", simulate(*args, **options), model="simulated", p_value=p_value)


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
        (SAME, {}, "supported", DIFFER),
        (SAME, {"noise": SAME}, "supported", HARDLY),
        (always(1, 0), {"noise": always(1, 0)}, "supported", HARDLY),  # equal at all layers
        (SAME, {"noise": always(0.8, 0.0), "spread": 0.6}, "supported", "unclear: random vectors"),
        (SAME, {"noise": None}, "supported", "unclear: random vectors"),
        (SAME, {"text": SAME}, "supported", "text states: harm does not beyond doubt rise"),
        (SAME, {"text": None}, "supported", "text states: not measured"),
        (SAME, {"far": SAME}, "weaker", "noise as far as another image in their place costs as"),
        (SAME, {"far": SAME, "noise": SAME}, "weaker", "noise as far as another image"),
        (SAME, {"far": always(0.8, 0.0), "spread": 0.6}, "inconclusive", "is unclear"),
        (SAME, {"far": None}, "inconclusive", "measure substitution_grid with all controls"),
        (NOT_AT_ALL, {"far": None, "noise": SAME}, "not supported", "answers are lost"),
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
    far = controls.loc["noise as far as another image"]
    assert (far["effect"], far["contrast"]) == pytest.approx((0.3, 0.6))
    assert v.control_effect == pytest.approx(0.3)
    assert v.thresholds["early_layer"] == 3


def test_layers_that_nobody_reads_do_not_dilute_a_loss():
    v = decide(always(0.5, 0.05), unread=(7, 9, 11), spread=0.0)
    rows = v.details.set_index("measure")["estimate"]
    loss = rows.filter(like="score lost, all").iloc[0]
    diluted = rows.filter(like="nobody reads").iloc[0]
    assert diluted == pytest.approx(loss * 2 / 5)  # two of the five layers from one third on
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


def test_parts_of_the_gaps_follow_the_entry():
    entry = claim_entry("C3")
    pairs = [(a, b) for a in (0, 3, 6, 9) for b in (0, 3, 6, 9) if a != b]
    far = {name: {abs(a - b) for a, b in part} for name, part in gap_parts(entry, pairs).items()}
    assert far == {"all": {3, 6, 9}, "large gaps": {9}, "small gaps": {3}}  # 6 is not above 2/3 * 9
    entry["gaps"] = {"large_above": "1/2", "small_up_to": "2/3"}
    far = {name: {abs(a - b) for a, b in part} for name, part in gap_parts(entry, pairs).items()}
    assert far == {"all": {3, 6, 9}, "large gaps": {6, 9}, "small gaps": {3, 6}}
    none_small = gap_parts(claim_entry("C3"), [(0, 4), (0, 5), (1, 5)])
    assert none_small["small gaps"] == [(0, 4), (1, 5)]
    table = simulate()
    assert verdict_by("C3", entry, table).thresholds["large_gaps_above"] == "1/2"
    assert "large gaps (6 to 8" in "".join(verdict_by("C3", entry, table).details["measure"])


def grid(rule):
    """Divergences of one image over all pairs of four layers, (images x pairs)."""
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    columns = pd.MultiIndex.from_tuples(pairs, names=["source_layer", "layer"])
    return pd.DataFrame([[rule(a, b) for a, b in pairs]], columns=columns)


def test_slope_over_the_gap_is_least_squares_within_the_receiving_layer():
    assert gap_slope(grid(lambda a, b: 0.25 * abs(a - b)))[0] == pytest.approx(0.25)
    assert gap_slope(grid(lambda a, b: 1.0))[0] == pytest.approx(0.0)
    # The outer layers have the larger gaps; that they read more is no slope.
    assert gap_slope(grid(lambda a, b: 5.0 * (b in (0, 3))))[0] == pytest.approx(0.0)
    assert gap_slope(grid(lambda a, b: 5.0 * b - abs(a - b)))[0] == pytest.approx(-1.0)
    two = grid(lambda a, b: 1.0)[[(0, 1), (1, 0)]]
    assert gap_slope(two) is None  # one gap: no slope


@pytest.mark.parametrize(
    ("text", "rises"),
    [
        (lambda gap: (0.3 - 0.1 * gap, 0.5), True),
        (always(0.3, 0.5), False),  # a level, no slope
        (lambda gap: (-2 + 0.1 * gap, 0.5), False),  # falls
    ],
)
def test_slope_of_text_states_is_told_and_decides_nothing(text, rises):
    v = decide(SAME, text=text, spread=0.1)
    said = "harm rises with the gap" if rises else "harm does not beyond doubt rise with the gap"
    assert v.verdict == "supported"
    assert v.reason.endswith(f"text states: {said}")
    rows = v.details.set_index("measure")
    assert rows.loc["harm per layer of gap (nats), text minus image", "label"] == said
    estimate = rows.loc["harm per layer of gap (nats), text states", "estimate"]
    index = [text(gap)[0] for gap in (1, 2)]
    assert estimate == pytest.approx(3.0 * (index[0] - index[1]), abs=0.1)


def test_text_states_that_rise_no_more_than_image_states_do_not_rise():
    falling = lambda gap: (1 - 0.02 * gap, 0.0)  # noqa: E731 both lose 0.06 nats a layer
    v = decide(falling, text=falling, spread=0.1)
    assert v.reason.endswith("harm does not beyond doubt rise with the gap")
    rows = v.details.set_index("measure")
    assert rows.loc["harm per layer of gap (nats), text states", "lo"] > 0


def test_why_is_a_label_of_its_own_and_empty_where_states_are_not_interchangeable():
    where = "index, image states minus noise of the same size"

    def label(*args, **options):
        return decide(*args, **options).details.set_index("measure").loc[where, "label"]

    assert label(SAME) == "they differ and are still exchangeable"
    assert label(SAME, noise=SAME) == "the states hardly differ"
    assert label(SAME, far=SAME) == "unclear"  # size tells nothing where nobody minds it
    assert label(NOT_AT_ALL, noise=SAME) == ""


def test_the_rule_before_asked_for_text_states_and_noise_of_the_same_size():
    name = "text states and noise of the same size must do harm"

    def before(**options):
        found = sensitivity("C3", simulate(**options)).set_index("variant")["verdict"]
        return found["as registered"], found[name]

    assert before() == ("supported", "supported")
    assert before(noise=SAME) == ("supported", "weaker")
    assert before(text=SAME) == ("supported", "weaker")
    assert before(far=None) == ("inconclusive", "supported")
    assert before(text=None) == ("supported", "inconclusive")


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
    assert "text states: not measured" in verdict("C3", gap).reason
    far = table["control"] == "noise as far as another image"
    gap = table.assign(kl=table["kl"].where(~far | (table["image"] != "i3")))
    assert "no complete control with noise as far as another image" in verdict("C3", gap).reason


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


NULLS = {
    # 3 in 100 pictures lose every answer: the worst case for a bootstrap of losses
    "loss at its margin": {"image": always(0.97, 0.03), "concentrated": True, "accuracy": 1.0},
    "index at its margin": {"image": always(0.80, 0.0), "spread": 0.6},
    "far noise at its margin": {"far": always(0.80, 0.0), "spread": 0.6},
    "heavy tails, index at its margin": {"image": always(0.80, 0.0), "tails": 0.8},
}


@pytest.mark.parametrize("null", NULLS.values(), ids=NULLS)
def test_nulls_are_rarely_called_supported(null):
    found = [decide(seed=s, p_value=False, **null).verdict for s in range(40)]
    assert found.count("supported") <= 5  # 2 expected at 5%; 6 or more has p = 0.01


TRUE = {
    "they differ": {"image": always(0.93, 0.004)},
    "equal at all layers": {"image": always(1, 0), "noise": always(1, 0)},
    "heavy tails": {"image": always(0.93, 0.004), "tails": 1.2},
}


@pytest.mark.parametrize("true", TRUE.values(), ids=TRUE)
def test_a_clear_effect_is_mostly_found_and_never_refuted(true):
    found = [decide(seed=s, p_value=False, **true).verdict for s in range(20)]
    assert found.count("supported") >= 16
    assert "not supported" not in found


def test_every_number_of_the_rule_is_in_the_record():
    v, entry = decide(), claim_entry("C3")
    for name in ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share"):
        assert v.thresholds[name] == entry["common"][name]
    for name, margin in entry["margins"].items():
        assert v.thresholds[f"margin_{name}"] == margin["value"]
    assert v.thresholds["min_images_for_no_loss"] == entry["min_images"]
    assert "(interchange index)" in str(v)
    assert "noise as far as another image" in str(v)
    assert v.thresholds["must_do_harm"] == "noise as far as another image"
    assert v.thresholds["large_gaps_above"] == entry["gaps"]["large_above"]
    assert v.thresholds["small_gaps_up_to"] == entry["gaps"]["small_up_to"]
    assert len(str(v).splitlines()) <= 10


def other_costs(share):
    """Interchangeable, and another picture after the first layer costs this share of the score."""
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
