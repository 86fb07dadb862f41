"""The rule of C2 on curves of text and image tokens whose answer is known."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.curves import (
    MARGINS,
    MOVE_MARGIN,
    early_change,
    flat,
    late_change,
    moves,
    slows,
    worlds_of_c2,
)
from calibration.curves import text_table as simulate
from visdepth_utils.claims.c2 import distinct
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict, verdict_by

PRESENT = "text keeps changing"
WORLDS = worlds_of_c2()


def controls(shapes="both settle", **options):
    return {"untrained": simulate(shapes, seed=1000, shuffled=False, placed=False, **options)}


def decide(shapes, control="both settle", **options):
    other = controls(control) if control else None
    return verdict("C2", simulate(shapes, **options), control=other, model="simulated")


@pytest.mark.parametrize(
    ("shapes", "control", "expected", "why"),
    [
        (PRESENT, "both settle", "supported", "in the image's own places"),
        (PRESENT, "neither changes", "supported", "no control shows it"),
        (PRESENT, "both keep changing", "supported", "no control shows it"),
        # Image tokens never settle: a comparison, and still an answer.
        ("text changes more", "both settle", "supported", "moves more than image tokens"),
        (PRESENT, PRESENT, "weaker", "a control shows it too (untrained)"),
        (PRESENT, None, "inconclusive", "no untrained control"),
        ("position only", "both settle", "weaker", "position"),
        ("both keep changing", "both settle", "not supported", "text moves no more"),
        ("both settle", "both settle", "not supported", "text moves no more"),
        ("neither changes", "both settle", "not supported", "text moves no more"),
        ("image keeps changing", "both settle", "not supported", "text moves no more"),
        ("both jump at the end", "both settle", "not supported", "text moves no more"),
    ],
)
def test_verdict_on_known_curves(shapes, control, expected, why):
    v = decide(shapes, control)
    assert v.verdict == expected, v.reason
    assert why in v.reason


@pytest.mark.parametrize("name", WORLDS)
def test_known_worlds_are_judged_right(name):
    true, make = WORLDS[name]
    for seed in range(2):
        v = verdict("C2", simulate(**make(seed)), control=controls(), p_value=False)
        assert v.verdict == "supported" if true else v.verdict != "supported", v.reason


def shape_decides(table, **changes):
    return verdict_by("C2", claim_entry("C2") | {"decides": "shape"} | changes, table, controls())


def test_movement_decides_and_shape_stands_beside():
    still = simulate(**WORLDS["text moves, all shapes are flat"][1](0))
    v = verdict("C2", still, control=controls(), p_value=False)
    assert v.verdict == "supported"
    assert v.reason.endswith("0 of 3 measures of shape change more and later")
    assert shape_decides(still, drop_last=0).verdict == "not supported"  # as it was
    turned = simulate(**WORLDS["text changes shape, nothing moves"][1](0))
    v = verdict("C2", turned, control=controls(), p_value=False)
    assert v.verdict == "not supported"
    assert v.reason.endswith("3 of 3 measures of shape change more and later")


def test_large_updates_that_leave_states_alike_are_half_of_it():
    v = verdict(
        "C2", simulate(**WORLDS["larger updates, states as alike"][1](0)), control=controls()
    )
    assert v.verdict == "weaker"
    assert "only 1 of 2 measures show text moving more" in v.reason


def test_a_move_in_the_last_two_layers_alone_is_the_next_token():
    make = WORLDS["text moves in the last two layers"][1]
    entry = claim_entry("C2")
    assert verdict_by("C2", entry, simulate(**make(0)), controls()).verdict == "not supported"
    within = verdict_by("C2", entry | {"drop_last": 0}, simulate(**make(0)), controls())
    assert within.verdict == "supported"


def test_twonn_is_not_read_where_words_repeat():
    """What is noted at state 0 says how many tokens of a draw are distinct there."""
    table = simulate(PRESENT)
    first = table["modality"].eq("text") & table["layer"].eq(0) & table["metric"].eq("id_twonn")
    assert distinct(table, "text") == 1.0
    for kept, readable in ((29, True), (28, False)):  # of 32: 0.906, 0.875
        note = f"20 of 20 draws undefined: {kept} distinct tokens of 32, at least 32 needed"
        table.loc[first, ["value", "note"]] = [np.nan, note]
        assert distinct(table, "text") == kept / 32
        v = verdict("C2", table, control=controls(), p_value=False)
        label = v.details.set_index("metric").loc["id_twonn", "label"]
        assert (label != "not read: words repeat") is readable
        assert f"{3 if readable else 2} of {3 if readable else 2} measures of shape" in v.reason
        assert v.verdict == "supported"


def test_simulated_changes_are_in_units_of_the_registered_margins():
    metrics = claim_entry("C2")["metrics"].values()
    margins = [np.log(m["margin"]) if m["scale"] == "log" else m["margin"] for m in metrics]
    assert pytest.approx(margins) == list(MARGINS)
    moved = [m["margin"] for m in claim_entry("C2")["movement"].values()]
    assert moved == [MOVE_MARGIN] * 2


@pytest.mark.parametrize("shapes", ["both settle", "both keep changing", "both jump at the end"])
@pytest.mark.parametrize("noise", [3.0, 8.0])
def test_noise_never_makes_support(shapes, noise):
    found = [decide(shapes, noise=noise, seed=s).verdict for s in range(3)]
    # Text noisier than the image: ranges of noise alone must not look like change.
    found += [decide(shapes, text_noise=noise, seed=s).verdict for s in range(3)]
    assert "supported" not in found


def test_wide_intervals_are_inconclusive():
    v = decide(PRESENT, noise=12.0, speeds=(slows, moves(1.5), moves(1.5)))
    assert v.verdict == "inconclusive"
    assert "too wide" in v.reason


def test_effect_of_noiseless_curves_is_exact():
    """1 - CKA 0.3 against 0.1, updates 0.25 against 0.15: ten and five margins."""
    image, text = (flat(0.15), flat(0.25)), (flat(0.1), flat(0.3))
    tables = [
        simulate(PRESENT, noise=0.0, speeds=(image[0], image[1], image[1]), apart=text[0]),
        simulate(PRESENT, noise=0.0, speeds=(image[0], image[1], image[1]), apart=text[1]),
    ]
    table = pd.concat(
        [tables[0][tables[0]["modality"] == "image"], tables[1][tables[1]["modality"] == "text"]]
    )
    late = table["layer"].gt(8) & table["metric"].isin(["update_ratio", "cka_ahead"])
    table.loc[late & table["metric"].eq("update_ratio") & table["layer"].gt(9), "value"] = 7.0
    v = verdict("C2", table)
    rows = v.details.set_index("metric")
    assert rows.loc["cka_ahead", "difference"] == pytest.approx(0.2)
    assert rows.loc["update_ratio", "difference"] == pytest.approx(0.1)
    assert v.effect == pytest.approx(5)  # the smaller, in margins; what the last two do is out
    assert v.ci == pytest.approx((5, 5))
    assert v.thresholds["early_layer"] == 3


def test_shapes_of_noiseless_curves_are_exact():
    v = decide((early_change(3), late_change(4), late_change(2)), noise=0.0)
    z = np.arange(1, 11) / 11  # the last two states are out
    image, text = (shape[0](z) for shape in (early_change(3), late_change(4)))
    late = slice(2, None)  # from state 3 on, the first column is state 1
    left = [np.ptp(curve[late]) for curve in (text, image)]
    row = v.details.set_index("metric").loc["entropy"]
    assert row["difference"] == pytest.approx(left[0] - left[1])


def test_where_shape_decides_a_tie_at_the_last_layer_is_decided_by_how_much_changes():
    """Both change to the end: nothing can be later, and more by a margin is what is asked."""
    v = shape_decides(simulate("text changes more"))
    depths = v.details.set_index("metric").loc[["entropy", "curvature"], ["z* text", "z* image"]]
    assert (depths["z* image"] > 0.5).all()
    assert v.verdict == "supported"
    barely = shape_decides(simulate((late_change(4), late_change(4.5), late_change(4.5))))
    assert barely.verdict in ("not supported", "inconclusive")


def test_where_shape_decides_text_that_settles_with_the_image_is_not_later():
    """More change than the image's from one third on, but image tokens rest later than text."""
    step = tuple(
        lambda z, a=a, b=b: np.where(z < 0.5, a, b) for a, b in ((0.5, 0.9), (3, 4), (90, 140))
    )
    v = shape_decides(simulate((late_change(3), step, step), seed=1))
    assert v.verdict == "not supported"
    assert "settles no later" in v.reason
    slower = (slows, lambda z: slows(z) - 0.05, slows)
    v = shape_decides(simulate(PRESENT, speeds=slower))
    assert v.verdict == "weaker"
    assert "move no more" in v.reason


@pytest.mark.parametrize("name", ["text moves, all shapes are flat", "nothing moves more"])
def test_the_printed_interval_holds_the_truth_in_nine_of_ten(name):
    make, entry = WORLDS[name][1], claim_entry("C2")
    entry["common"]["resamples"] = 400
    bare = {"shuffled": False, "placed": False}
    truth = verdict_by("C2", entry, simulate(**make(0), noise=0.0, **bare), None).effect
    ends = [verdict_by("C2", entry, simulate(**make(s), **bare), None).ci for s in range(12)]
    assert sum(lo <= truth + 1e-6 and truth - 1e-6 <= hi for lo, hi in ends) >= 11


def test_shuffled_labels_are_a_control_like_the_others():
    v = decide(PRESENT)
    rows = v.controls.set_index("control")
    assert set(rows.index) == {"untrained", "shuffled labels"}
    assert (rows["shows it"] == "no").all()
    assert abs(rows.loc["shuffled labels", "effect"]) < 1
    assert v.control_effect == rows["effect"].max()
    assert "shuffled labels" in decide(PRESENT, shuffled=False).reason
    # Labels that are not shuffled at all must be noticed.
    table = simulate(PRESENT)
    kept = table[~table["modality"].str.startswith("shuffled")]
    same = kept[kept["modality"].isin(["image", "text"])]
    fake = same.assign(modality="shuffled " + same["modality"])
    v = verdict("C2", pd.concat([kept, fake]), control=controls())
    assert v.verdict == "weaker"
    assert "shuffled labels" in v.reason


def test_what_cannot_be_told_is_said():
    assert "20 images" in decide(PRESENT, n=20).reason
    assert decide(PRESENT, n=20).verdict == "inconclusive"
    assert "was not measured" in decide(PRESENT, placed=False).reason
    table = simulate(PRESENT)
    short = table["modality"].eq("text") & table["metric"].isin(["entropy", "id_twonn"])
    table.loc[short, ["value", "note"]] = [np.nan, "20 tokens, fewer than n0=32"]
    v = verdict("C2", table, control=controls())
    assert v.verdict == "supported"  # shape is beside the point
    assert "1 of 1 measures of shape" in v.reason
    assert v.details["label"].eq("not measured").sum() == 2
    lost = table["modality"].eq("text") & table["metric"].eq("cka_ahead")
    table.loc[lost, ["value", "note"]] = [np.nan, "2 tokens, fewer than 4"]
    v = verdict("C2", table, control=controls())
    assert v.verdict == "not testable"
    assert "2 tokens, fewer than 4" in v.reason
    assert json.loads(json.dumps(v.to_dict(), allow_nan=False))["effect"] is None
    shallow = simulate(PRESENT)
    assert verdict("C2", shallow[shallow["layer"] <= 4]).verdict == "not testable"
    alone = simulate(PRESENT)
    v = verdict("C2", alone[alone["modality"] != "text"])
    assert (v.verdict, v.n_images) == ("not testable", 0)


def test_the_first_state_is_left_out():
    """Embeddings of equal words are one point: their dimension has no value and is not needed."""
    table = simulate(PRESENT)
    table.loc[table["modality"].eq("text") & table["layer"].eq(0), "value"] = np.nan
    v = verdict("C2", table, control=controls())
    assert (v.verdict, v.n_images) == ("supported", 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="value"), "lacks column.*value"),
        (lambda t: t[t["metric"] != "curvature"], "no metric 'curvature'"),
        (lambda t: t[t["modality"] != "image"], "no 'image' tokens"),
    ],
)
def test_bad_tables_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        verdict("C2", change(simulate(PRESENT)))


def test_controls_must_have_the_same_images_and_layers():
    table, other = simulate(PRESENT), controls()["untrained"]
    with pytest.raises(ValueError, match="lacks 1 of 48 images"):
        verdict("C2", table, control={"c": other[other["image"] != "i7"]})
    with pytest.raises(ValueError, match="'c' has 11 layers"):
        verdict("C2", table, control={"c": other[other["layer"] < 12]})


def test_unit_of_resampling_is_the_image():
    table = simulate(PRESENT)
    copies = pd.concat([table.assign(sample=table["sample"] + f"-{k}") for k in range(3)])
    a, b = (verdict("C2", t, control=controls()) for t in (table, copies))
    assert a.ci == pytest.approx(b.ci)
    assert a.n_images == b.n_images == 48


def test_sensitivity_and_the_record():
    table = simulate(PRESENT)
    parts = [table[table["modality"] == "text"].assign(modality=m) for m in ("prompt", "generated")]
    rests = simulate("both settle")
    parts[0] = rests[rests["modality"] == "text"].assign(modality="prompt")
    other = controls()["untrained"]
    own = [other[other["modality"] == "text"].assign(modality=m) for m in ("prompt", "generated")]
    found = sensitivity(
        "C2", pd.concat([table, *parts]), control={"untrained": pd.concat([other, *own])}
    ).set_index("variant")["verdict"]
    assert found["as registered"] == found["generated text alone"] == "supported"
    assert found["prompt text alone"] == "not supported"
    assert {"margins x 0.5", "margins x 2", "from half of the depth on"} <= set(found.index)
    assert found["measures of shape decide"] == "supported"
    bare = sensitivity("C2", table, control=controls()).set_index("variant")["verdict"]
    assert bare["generated text alone"] == "not testable"
    v, entry = decide(PRESENT), claim_entry("C2")
    for name in ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share"):
        assert v.thresholds[name] == entry["common"][name]
    for metric in entry["metrics"].values():
        assert v.thresholds[f"margin_{metric['column']}"] == metric["margin"]
    for column, measure in entry["movement"].items():
        assert v.thresholds[f"margin_{column}"] == measure["margin"]
    assert v.thresholds["early"] == entry["early"]
    assert len(str(v).splitlines()) <= 10


def test_less_than_a_control_shows_is_not_supported():
    """A control can fail beyond doubt, at the margin of a tie, and yet show as much."""
    entry = claim_entry("C2")
    for move in entry["movement"].values():
        move["margin"] = 0.02
    speeds = (slows, moves(1.15), moves(1.15))
    options = {"noise": 0.1, "shuffled": False, "placed": False}
    rival = simulate(PRESENT, seed=1, speeds=(slows, moves(0.99), moves(0.99)), **options)
    rest = simulate(PRESENT, noise=0.1, speeds=speeds)
    v = verdict_by("C2", entry, rest, {"rival": rival})
    assert v.controls.set_index("control").loc["rival", "shows it"] == "no"
    assert v.verdict == "supported"
    entry["combine"] = "mean"  # by the mean a control can show one measure alone, and much of it
    big = simulate(PRESENT, seed=1, speeds=(slows, moves(9), moves(9)), apart=slows, **options)
    v = verdict_by("C2", entry, rest, {"rival": big})
    assert v.controls.set_index("control").loc["rival", "shows it"] == "no"
    assert v.verdict == "weaker"
    assert "but less than in a control (rival)" in v.reason
