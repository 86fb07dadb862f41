"""Claims: the registry, the verdict object, and the rule of C1 on curves whose answer is known."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.curves import (
    LAYERS,
    SHAPES,
    curves_table,
    early_change,
    late_change,
    plateau,
)
from calibration.curves import image_table as simulate
from visdepth_utils.claims.registry import (
    VERDICTS,
    Verdict,
    claim_entry,
    load_claims,
    not_testable,
    sensitivity,
    verdict,
)
from visdepth_utils.claims.stabilisation import LATE


def decide(shape, control="drift", **options):
    other = {"control": simulate(control, seed=1000)} if control else None
    return verdict("C1", simulate(shape, **options), control=other, model="simulated")


def changes(early, late):
    """Each measure changes by so many margins up to one third, and by so many after it."""
    nothing = late_change(0)

    def one(i):
        first, then = early_change(early[i])[i], late_change(late[i])[i]
        return lambda z: first(z) + then(z) - nothing[i](z)

    return one(0), one(1), one(2)


@pytest.mark.parametrize(
    ("shape", "control", "expected"),
    [
        ("plateau", "drift", "supported"),
        ("plateau", "jump", "supported"),
        ("plateau", "flat", "supported"),
        ("plateau", "expands", "supported"),
        ("plateau", "plateau", "weaker"),
        ("plateau", "look-alike", "weaker"),
        ("plateau", None, "inconclusive"),
        ("look-alike", "drift", "weaker"),
        ("expands", "drift", "weaker"),
        ("drift", "flat", "not supported"),
        ("jump", "drift", "not supported"),
        ("flat", "drift", "weaker"),  # already settled at the input: neither for nor against
        ("flat", "flat", "weaker"),
    ],
)
def test_verdict_on_known_curves(shape, control, expected):
    for seed in range(2):
        assert decide(shape, control, seed=seed).verdict == expected


@pytest.mark.parametrize("shape", ["flat", "drift", "jump", "look-alike", "expands"])
@pytest.mark.parametrize("noise", [3.0, 8.0])
def test_noise_never_makes_support(shape, noise):
    assert all(decide(shape, noise=noise, seed=s).verdict != "supported" for s in range(4))


def test_noise_on_flat_curves_is_not_called_change():
    labels = pd.concat([decide("flat", noise=8.0, seed=s).details["label"] for s in range(8)])
    assert (labels == LATE).mean() <= 0.15  # one-sided 95% bounds: 0.05 expected


def test_wide_bands_are_inconclusive_for_the_claim_and_for_the_control():
    assert decide("plateau", noise=8.0).verdict == "inconclusive"
    noisy = verdict("C1", simulate("plateau"), control=simulate("look-alike", noise=8.0), model="m")
    assert noisy.verdict == "inconclusive"
    assert noisy.controls["shows it"].tolist() == ["unclear"]


def test_every_control_must_fail():
    controls = {"drifts": simulate("drift", seed=1), "settles": simulate("look-alike", seed=2)}
    v = verdict("C1", simulate("plateau"), control=controls)
    assert v.verdict == "weaker"
    assert "untrained model of the same architecture" in v.reason
    assert "settles" in v.reason
    assert v.control_effect == v.controls["effect"].max()


def test_a_part_that_an_untrained_model_shows_as_well_is_called_so():
    assert "untrained model shows these as well" in decide("look-alike", "look-alike").reason
    assert "untrained" not in decide("look-alike", "drift").reason


def test_effect_is_near_one_for_a_plateau_and_zero_for_drift_in_dimension():
    v = decide("plateau")
    assert v.ci[0] <= v.effect <= v.ci[1]
    assert v.effect > 0.85
    assert v.control_effect < 0.35  # a third of the depth, less the last states, of an even change
    contrast = v.controls.iloc[0]
    assert contrast["lo"] > 0.8


def test_effect_of_noiseless_curves_is_exact():
    v = decide("plateau", noise=0.0)
    z = np.arange(1, LAYERS) / (LAYERS - 1)
    curve = plateau(130, 92)(z)
    early = 3  # floor((L - 1) / 3), layer 3 is at place 2 of the angles
    expected = 1 - np.ptp(curve[early - 1 : -2]) / np.ptp(curve[:-2])  # the last two are out
    details = v.details.set_index("metric")
    assert details.loc["curvature", "early share"] == pytest.approx(expected, abs=1e-9)
    assert v.thresholds["early_layer"] == early


def test_stabilisation_layer_of_a_step():
    SHAPES["step"] = tuple(
        (lambda z, a=a, b=b: np.where(z < 2 / 11 - 1e-9, a, b))
        for a, b in ((0.7, 0.9), (3.8, 3.2), (130, 92))
    )
    try:
        v = decide("step", noise=0.5)
    finally:
        del SHAPES["step"]
    assert v.details["l*"].head(3).tolist() == [2, 2, 2]
    assert v.verdict == "supported"


def test_a_representation_that_speeds_up_afterwards_weakens_the_claim():
    v = decide("plateau", speed=lambda z: 0.1 + 0.5 * z)
    assert v.verdict == "weaker"
    assert "slow down" in v.reason


def test_few_images_are_inconclusive_and_few_tokens_not_testable():
    assert decide("plateau", n=20).verdict == "inconclusive"
    table = simulate("plateau")
    short = table["metric"].isin(["entropy", "id_twonn"])
    table.loc[short, ["value", "note"]] = [np.nan, "40 tokens, fewer than n0=64"]
    v = verdict("C1", table, control=simulate("drift"))
    assert v.verdict == "not testable"
    assert "fewer than n0=64" in v.reason
    assert np.isnan(v.effect)
    assert json.loads(json.dumps(v.to_dict(), allow_nan=False))["effect"] is None


def test_a_few_incomplete_images_are_left_out_of_model_and_control():
    table = simulate("plateau")
    table.loc[(table["image"] == "i0") & (table["metric"] == "entropy"), "value"] = np.nan
    v = verdict("C1", table, control=simulate("drift"))
    assert (v.verdict, v.n_images) == ("supported", 47)


def test_unit_of_resampling_is_the_image():
    one, four = simulate("plateau"), simulate("plateau")
    copies = [four.assign(sample=four["sample"] + f"-{k}") for k in range(4)]
    a = verdict("C1", one, control=simulate("drift"))
    b = verdict("C1", pd.concat(copies), control=simulate("drift"))
    assert a.ci == pytest.approx(b.ci)
    assert a.n_images == b.n_images == 48


def test_shallow_decoders_are_not_testable():
    table = simulate("plateau")
    assert verdict("C1", table[table["layer"] <= 4]).verdict == "not testable"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="value"), "lacks column"),
        (lambda t: t[t["metric"] != "curvature"], "no metric 'curvature'"),
        (lambda t: t.assign(modality="text"), "no image tokens"),
    ],
)
def test_bad_tables_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        verdict("C1", change(simulate("plateau")))


def test_controls_must_have_the_same_images_and_layers():
    table, control = simulate("plateau"), simulate("drift")
    with pytest.raises(ValueError, match="lacks 1 of 48 images"):
        verdict("C1", table, control=control[control["image"] != "i7"])
    with pytest.raises(ValueError, match="'deep' has 11 layers"):
        verdict("C1", table, control={"deep": control[control["layer"] < 12]})


def test_thresholds_come_from_the_file(tmp_path):
    text = (load_claims.__globals__["CLAIMS_FILE"]).read_text()
    strict = tmp_path / "claims.yaml"
    text = text.replace("relative_share: 0.25", "relative_share: null")
    strict.write_text(text.replace("margin: 0.05", "margin: 0.0001"))
    table, control = simulate("plateau"), simulate("drift")
    assert verdict("C1", table, control=control).verdict == "supported"
    v = verdict("C1", table, control=control, path=strict)
    assert v.verdict != "supported"
    assert v.thresholds["margin_entropy"] == 0.0001


def test_every_number_of_the_rule_is_in_the_record():
    v, entry = decide("plateau"), claim_entry("C1")
    for name in ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share"):
        assert v.thresholds[name] == entry["common"][name]
    assert v.thresholds["z_star_max"] == "1/3"
    assert json.loads(json.dumps(v.to_dict(), allow_nan=False))["verdict"] == "supported"


def test_sensitivity_lists_the_registered_settings_first():
    table, control = simulate("plateau"), {"c": simulate("drift")}
    found = sensitivity("C1", table, control=control, measured={"again": (table, control)})
    names = ["as registered", "margins x 0.5", "margins x 2", "dimension by id_mle", "again"]
    assert found["variant"].tolist() == names
    assert found["verdict"].iloc[0] == found["verdict"].iloc[-1] == "supported"
    assert set(found["verdict"]) <= set(VERDICTS)


def test_verdict_shows_itself_in_few_escaped_lines():
    v = Verdict("C1", "a<b", "m & m", "weaker", 0.1234, (0.1, 0.2), 48, float("nan"), {}, "01", "x")
    assert len(str(v).splitlines()) <= 10
    assert "0.12 [0.10, 0.20]" in str(v)
    assert "not measured" in str(v)
    html = v._repr_html_()
    assert "a&lt;b" in html
    assert "m &amp; m" in html
    assert "a<b" not in html


def test_registry_is_complete_and_refuses_unknown_claims(tmp_path):
    registry = load_claims()
    assert set(registry["verdicts"]) == set(VERDICTS)
    for entry in registry["claims"].values():
        for name in ("where", "statement", "supports", "refutes", "endpoint"):
            assert len(entry[name]) > 10
        assert len(entry.get("quote") or entry["paraphrase"]) > 10
        for metric in entry.get("metrics", {}).values():
            assert metric["margin"] > 0
            assert metric["margin_reason"]
        for margin in entry.get("margins", {}).values():
            assert margin["value"] > 0
            assert margin["reason"]
        assert entry["not_stated"]
        assert entry["controls"]
        assert set(entry["control_label"]) == {"name", "note"}
    registry["claims"]["C1"]["z_star_max"] = "changed"
    assert load_claims()["claims"]["C1"]["z_star_max"] == "1/3"
    with pytest.raises(ValueError, match="unknown claim 'C99'"):
        verdict("C99", simulate("plateau"))
    with pytest.raises(FileNotFoundError, match="missing"):
        load_claims(tmp_path / "none.yaml")


def test_claims_of_a_notebook_that_lacks_data_are_not_testable():
    (found,) = not_testable("01_image_tokens_stabilise", "no captions", "owner/name")
    plain = found.to_dict()
    assert (plain["claim"], plain["verdict"], plain["model"]) == (
        "C1",
        "not testable",
        "owner/name",
    )
    assert (plain["reason"], plain["effect"], plain["n_images"]) == ("no captions", None, 0)
    assert not_testable("00_start_here", "no tasks", "owner/name") == []


def test_less_than_an_untrained_model_shows_is_not_supported():
    """A control can fail beyond doubt, by a range left, and yet have more of its change early."""
    model = changes((1.6, 1.6, 1.6), (0.6, 0.6, 0.6))  # settled, within the margin
    control = changes((20, 20, 20), (0, 0, 7))  # seven margins left, of twenty
    tables = [curves_table(shape, noise=0.1, seed=s) for s, shape in enumerate((model, control))]
    v = verdict("C1", tables[0], control={"rival": tables[1]}, p_value=False)
    assert v.controls["shows it"].tolist() == ["no"]
    assert v.verdict == "weaker"
    assert v.reason.endswith("but less than in an untrained model (rival)")
    assert v.controls["hi"].max() < 0
