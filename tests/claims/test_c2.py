"""The rule of C2 on curves of text and image tokens whose answer is known."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.curves import (
    MARGINS,
    SHAPES,
    early_change,
    late_change,
    slows,
)
from calibration.curves import text_table as simulate
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict

PRESENT = "text keeps changing"


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
        ("text changes more", "both keep changing", "supported", "more and later"),
        (PRESENT, PRESENT, "weaker", "a control shows it too (untrained)"),
        (PRESENT, None, "inconclusive", "no untrained control"),
        ("position only", "both settle", "weaker", "position"),
        ("both keep changing", "both settle", "not supported", "text changes no more"),
        ("both settle", "both settle", "not supported", "text has settled"),
        ("neither changes", "both settle", "not supported", "text has settled"),
        ("image keeps changing", "both settle", "not supported", "text has settled"),
        ("both jump at the end", "both settle", "not supported", "text changes no more"),
    ],
)
def test_verdict_on_known_curves(shapes, control, expected, why):
    v = decide(shapes, control)
    assert v.verdict == expected, v.reason
    assert why in v.reason


def test_simulated_changes_are_in_units_of_the_registered_margins():
    metrics = claim_entry("C2")["metrics"].values()
    margins = [np.log(m["margin"]) if m["scale"] == "log" else m["margin"] for m in metrics]
    assert pytest.approx(margins) == list(MARGINS)


@pytest.mark.parametrize("shapes", ["both settle", "both keep changing", "both jump at the end"])
@pytest.mark.parametrize("noise", [3.0, 8.0])
def test_noise_never_makes_support(shapes, noise):
    found = [decide(shapes, noise=noise, seed=s).verdict for s in range(3)]
    # Text noisier than the image: ranges of noise alone must not look like change.
    found += [decide(shapes, text_noise=noise, seed=s).verdict for s in range(3)]
    assert "supported" not in found


def test_wide_intervals_are_inconclusive():
    v = decide(PRESENT, noise=12.0)
    assert v.verdict == "inconclusive"
    assert "too wide" in v.reason


def test_effect_of_noiseless_curves_is_exact():
    v = decide((early_change(3), late_change(4), late_change(2)), noise=0.0)
    z = np.arange(1, 13) / 11
    image, text = (shape[0](z) for shape in (early_change(3), late_change(4)))
    late = slice(2, None)  # states 3 .. 12, the first column is state 1
    left = [np.ptp(curve[late]) / MARGINS[0] for curve in (text, image)]
    row = v.details.set_index("metric").loc["entropy"]
    assert row["difference"] / row["margin"] == pytest.approx(left[0] - left[1])
    assert v.thresholds["early_layer"] == 3
    curved = v.details.set_index("metric").loc["curvature"]
    assert v.effect == pytest.approx(curved["difference"] / curved["margin"])  # ends at layer 11
    assert v.ci == pytest.approx((v.effect, v.effect))
    assert row["in place"] == pytest.approx(row["text"] / 2)


def test_a_tie_at_the_last_layer_is_decided_by_how_much_changes():
    """Both change to the end: nothing can be later, and more by a margin is what is asked."""
    v = decide("text changes more")
    depths = v.details[["z* text", "z* image"]].head(3)
    assert (depths["z* image"] > 0.5).all()
    assert v.verdict == "supported"
    barely = decide((late_change(4), late_change(4.5), late_change(4.5)))
    assert barely.verdict in ("not supported", "inconclusive")


def test_text_that_settles_with_the_image_is_not_later():
    """More change than the image's behind one third, but image tokens rest later than text."""
    step = tuple(
        lambda z, a=a, b=b: np.where(z < 0.5, a, b) for a, b in ((0.5, 0.9), (3, 4), (90, 140))
    )
    v = decide((late_change(3), step, step), seed=1)
    assert v.verdict == "not supported"
    assert "settles no later" in v.reason


def test_states_that_do_not_move_more_weaken_the_claim():
    v = decide(PRESENT, text_speed=lambda z: slows(z) - 0.05)
    assert v.verdict == "weaker"
    assert "move no more" in v.reason


def test_shuffled_labels_are_a_control_like_the_others():
    v = decide(PRESENT)
    rows = v.controls.set_index("control")
    assert set(rows.index) == {"untrained", "shuffled labels"}
    assert (rows["shows it"] == "no").all()
    assert abs(rows.loc["shuffled labels", "effect"]) < 0.5
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
    assert v.verdict == "not testable"
    assert "fewer than n0=32" in v.reason
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
    flat = simulate((SHAPES["flat"],) * 3)
    parts[0] = flat[flat["modality"] == "text"].assign(modality="prompt")
    other = controls()["untrained"]
    own = [other[other["modality"] == "text"].assign(modality=m) for m in ("prompt", "generated")]
    found = sensitivity(
        "C2", pd.concat([table, *parts]), control={"untrained": pd.concat([other, *own])}
    ).set_index("variant")["verdict"]
    assert found["as registered"] == found["generated text alone"] == "supported"
    assert found["prompt text alone"] == "not supported"
    assert found["dimension by id_mle"] == "supported"
    assert {"margins x 0.5", "margins x 2", "behind half of the depth"} <= set(found.index)
    bare = sensitivity("C2", table, control=controls()).set_index("variant")["verdict"]
    assert bare["generated text alone"] == "not testable"
    v, entry = decide(PRESENT), claim_entry("C2")
    for name in ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share"):
        assert v.thresholds[name] == entry["common"][name]
    for metric in entry["metrics"].values():
        assert v.thresholds[f"margin_{metric['column']}"] == metric["margin"]
    assert v.thresholds["early"] == entry["early"]
    assert len(str(v).splitlines()) <= 10


def test_less_than_a_control_shows_is_not_supported():
    """A control can fail beyond doubt, as its text rests sooner, and yet change more late."""
    shape = (early_change(3)[0], early_change(3)[1], late_change(4)[2])
    step = tuple(lambda z, a=a: np.where(z < 0.5, a, a + 60) for a in (0, 0, 90))
    text = (*late_change(6)[:2], step[2])
    options = {"noise": 0.1, "shuffled": False, "placed": False}
    rival = simulate((shape, text, text), seed=1, **options)
    v = verdict("C2", simulate(PRESENT, noise=0.1), control={"rival": rival}, p_value=False)
    assert v.controls.set_index("control").loc["rival", "shows it"] == "no"
    assert v.verdict == "weaker"
    assert v.reason.endswith("but less than in a control (rival)")
