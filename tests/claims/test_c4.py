"""The rule of C4 on sweeps whose answer is known: tokens that flip with a hazard by depth."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.truncated import (
    ALIKE,
    DEPENDS,
    LAYERS,
    LENGTH,
    REVERSED,
    Z,
    needs,
)
from calibration.truncated import sweep_tables as simulate
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict


def decide(hazards, **options):
    table, controls = simulate(hazards, **options)
    return verdict("C4", table, control=controls, model="simulated")


@pytest.mark.parametrize(
    ("hazards", "options", "expected", "why"),
    [
        (DEPENDS, {}, "supported", "every token of a text is hit harder"),
        (REVERSED, {}, "not supported", "keep less of the gain"),
        (LENGTH, {"n": 192}, "weaker", "errors adding up over length"),
        (DEPENDS, {"harm": {"mcq": 9, "vqa": 9, "chart": 9, "caption": 0.5}}, "weaker", "length"),
        (
            DEPENDS,
            {"accuracy": 0.25, "guess": 0.25},
            "not testable",
            "better than without picture",
        ),
        (DEPENDS, {"other": 0.95}, "not testable", "another picture brings"),
        (DEPENDS, {"other": 0.40, "n": 36, "guess": 0.25}, "inconclusive", "as much is unclear"),
        (DEPENDS, {"n": 20}, "inconclusive", "20 images"),
        (REVERSED, {"n": 20}, "inconclusive", "20 images"),
    ],
)
def test_verdict_on_known_sweeps(hazards, options, expected, why):
    for seed in range(2):
        v = decide(hazards, seed=seed, **options)
        assert v.verdict == expected, v.reason
        assert why in v.reason


def test_equal_tasks_are_never_called_different():
    found = [decide(ALIKE, words=1, n=96, seed=s).verdict for s in range(8)]
    assert set(found) <= {"not supported", "inconclusive"}
    assert "not supported" in found


def test_length_alone_is_told_from_what_a_token_loses():
    v = decide(LENGTH, n=96, seed=1)
    rows = v.details.set_index("measure")["estimate"]
    expected = rows["texts that change: expected from length alone"]
    assert rows["texts that change: seen"] == pytest.approx(expected, abs=0.05)
    assert v.ci[0] > 0
    assert abs(rows["nats per token: text minus single-token"]) < 0.05


def test_effect_of_noiseless_retention_is_exact():
    table, controls = simulate(DEPENDS, spread=0.0)
    keep = {"mcq": Z**0.5, "vqa": Z**0.5, "chart": Z, "caption": Z**2}
    table["correct"] = [
        0.2 + 0.7 * keep[t][d] for t, d in zip(table.task, table.depth, strict=True)
    ]
    conditions = controls["conditions"]
    conditions["score"] = conditions["condition"].map({"full": 0.9, "blind": 0.2, "other": 0.27})
    v = verdict("C4", table, control=controls)
    exact = np.trapezoid(Z**0.5, Z) - np.trapezoid(Z**2, Z)
    assert v.effect == pytest.approx(exact)
    assert v.ci == pytest.approx((exact, exact))
    assert v.control_effect == pytest.approx(0.1)
    assert set(v.controls["control"]) == {
        f"another picture ({t})" for t in ("mcq", "vqa", "caption")
    }
    half = v.details.set_index("measure").loc["caption: kept at half the depth", "estimate"]
    assert half == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("missing", "why"),
    [("conditions", "not tried with another picture"), ("token_kl", "no divergence per token")],
)
def test_nothing_is_supported_without_both_other_tables(missing, why):
    table, controls = simulate(DEPENDS)
    del controls[missing]
    v = verdict("C4", table, control=controls)
    assert v.verdict == "inconclusive"
    assert why in v.reason
    table, controls = simulate(REVERSED)
    del controls[missing]
    assert verdict("C4", table, control=controls).verdict == "not supported"


def test_depth_zero_stands_in_for_no_picture_where_that_was_not_measured():
    table, controls = simulate(DEPENDS, n=200)
    conditions = controls["conditions"]
    controls["conditions"] = conditions[conditions["condition"] == "other"]
    v = verdict("C4", table, control=controls)
    assert v.verdict == "supported"
    assert v.effect == pytest.approx(decide(DEPENDS, n=200).effect, abs=0.08)


def test_a_task_without_gain_is_left_out_and_the_others_decide():
    table, controls = simulate(DEPENDS)
    blind = (controls["conditions"]["task"] == "vqa") & (
        controls["conditions"]["condition"] == "blind"
    )
    controls["conditions"].loc[blind, "score"] = 0.97
    v = verdict("C4", table, control=controls)
    assert v.verdict == "supported"
    labels = v.details.set_index("measure")["label"]
    assert labels["vqa: gain by the picture"].startswith("skipped")
    assert labels["chart: gain by the picture"] == "beside; used"


def test_charts_beside_do_not_touch_the_verdict():
    table, controls = simulate(DEPENDS)
    with_charts = verdict("C4", table, control=controls)
    without = verdict("C4", table[table["task"] != "chart"], control=controls)
    assert (with_charts.effect, with_charts.ci) == (without.effect, without.ci)


def test_missing_values():
    table, controls = simulate(DEPENDS)
    one, many = table.copy(), table.copy()
    one.loc[(one["image"] == "i0") & (one["depth"] == 5), "correct"] = np.nan
    v = verdict("C4", one, control=controls)
    assert (v.verdict, v.n_images) == ("supported", 47)
    many.loc[many["image"].isin([f"i{i}" for i in range(20)]), "correct"] = np.nan
    v = verdict("C4", many, control=controls)
    assert v.verdict == "not testable"
    assert "20 of 48 images of mcq have no value" in v.reason
    assert json.loads(json.dumps(v.to_dict(), allow_nan=False))["effect"] is None
    tokens = controls["token_kl"]
    lost = tokens.assign(kl=tokens["kl"].where(tokens["image"] != "i1"))
    v = verdict("C4", table, control=controls | {"token_kl": lost})
    assert (v.verdict, v.n_images) == ("supported", 47)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("table", lambda t: t.drop(columns="correct"), "table lacks column.*correct"),
        ("conditions", lambda t: t.drop(columns="score"), "conditions lacks column.*score"),
        ("token_kl", lambda t: t.drop(columns="kl"), "token_kl lacks column.*kl"),
        ("conditions", lambda t: t[t["image"] != "i7"], "lacks 1 of 48 images"),
        ("token_kl", lambda t: t[t["image"] != "i7"], "token_kl lacks 1 of 48 images"),
    ],
)
def test_bad_tables_are_refused_by_name(name, change, message):
    table, controls = simulate(DEPENDS)
    tables = {"table": table, **controls}
    tables[name] = change(tables[name])
    with pytest.raises(ValueError, match=message):
        verdict("C4", tables.pop("table"), control=tables)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t[t["depth"] <= 4], "4 decoder layers"),
        (lambda t: t[t["depth"] > 0], "depths start at 1"),
        (lambda t: t[t["task"] != "vqa"], "no task 'vqa'"),
        (lambda t: t.assign(mode="freeze"), "no rows of mode 'remove'"),
    ],
)
def test_what_cannot_be_asked_is_not_testable(change, why):
    table, controls = simulate(DEPENDS)
    v = verdict("C4", change(table), control=controls)
    assert v.verdict == "not testable"
    assert why in v.reason


def test_unit_of_resampling_is_the_image_and_tasks_move_together():
    table, controls = simulate(DEPENDS)
    copies = pd.concat([table.assign(sample=table["sample"] + f"-{k}") for k in range(3)])
    a, b = (verdict("C4", t, control=controls) for t in (table, copies))
    assert a.ci == pytest.approx(b.ci)
    assert a.n_images == b.n_images == 48
    # Images that are easy for all tasks alike cancel in the contrast only if tasks move together.
    shift = table["image"].map({name: i / 48 for i, name in enumerate(table["image"].unique())})
    common = table.assign(correct=0.3 + 0.3 * shift + 0.4 * (table["depth"] / LAYERS))
    v = verdict("C4", common, control=controls)
    assert v.ci[1] - v.ci[0] < 0.12


def test_sensitivity_asks_again_with_other_modes_scores_and_tasks():
    table, controls = simulate(DEPENDS)
    found = sensitivity("C4", table, control=controls).set_index("variant")["verdict"]
    assert found["as registered"] == found["letters only"] == "supported"
    assert found["likeness to the full output (chrF)"] == "supported"
    assert found["positions closed up"] == "not testable"
    both = pd.concat([table, table.assign(mode="renumber")])
    tokens = controls["token_kl"]
    controls["token_kl"] = pd.concat([tokens, tokens.assign(mode="renumber")])
    found = sensitivity("C4", both, control=controls).set_index("variant")["verdict"]
    assert found["positions closed up"] == found["as registered"] == "supported"


@pytest.mark.parametrize(
    ("hazards", "options"),
    [
        (ALIKE, {"words": 1, "harm": {"mcq": 1, "vqa": 1, "chart": 1, "caption": 5}}),
        (LENGTH, {}),
    ],
    ids=["no contrast, texts hit harder", "contrast by length alone"],
)
def test_nulls_are_rarely_called_supported(hazards, options):
    found = [decide(hazards, n=96, seed=s, **options).verdict for s in range(40)]
    assert found.count("supported") <= 4  # 1 expected at 2.5%; 5 or more has p = 0.003


def test_a_clear_effect_is_mostly_found():
    mild = {"mcq": needs(0.35), "vqa": needs(0.35), "caption": needs(0.65)}
    found = [decide(mild, n=96, seed=s).verdict for s in range(20)]
    assert found.count("supported") >= 16


def test_every_number_of_the_rule_is_in_the_record():
    v, entry = decide(DEPENDS), claim_entry("C4")
    for name in ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share"):
        assert v.thresholds[name] == entry["common"][name]
    for name, margin in entry["margins"].items():
        assert v.thresholds[f"margin_{name}"] == margin["value"]
    assert v.thresholds["tasks"] == entry["tasks"]
    assert "(retention over depth, single-token minus text)" in str(v)
    assert "another picture" in str(v)
    assert len(str(v).splitlines()) <= 10
