"""The rule of C4 on sweeps whose answer is known: tokens that flip with a hazard by depth."""

import json
import re

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
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict, verdict_by

LESS = {"mcq": needs(0.4), "vqa": needs(0.4), "caption": needs(0.3)}
UNITS = {k: {"mcq": 3, "vqa": 3, "chart": 3, "caption": 3 * k} for k in (0.5, 1.2, 2, 5)}
CLUSTERS = {"n": 48, "questions": 2, "spread": 0.8}


def decide(hazards, **options):
    table, controls = simulate(hazards, **options)
    return verdict("C4", table, control=controls, model="simulated")


@pytest.mark.parametrize(
    ("hazards", "options", "expected", "why"),
    [
        (DEPENDS, {}, "supported", "a token of a text is hit harder"),
        (REVERSED, {}, "not supported", "keep less of the gain"),
        (LENGTH, {"n": 192}, "weaker", "errors that add up over length"),
        (LESS, {"n": 96, "words": 30, "guess": 0.05}, "weaker", "a token of text is hit less"),
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
    assert v.ci[0] > 0
    assert -0.15 < v.details.set_index("measure")["lo"][LOST] < 0
    assert 0 < v.details.set_index("measure")["hi"][LOST] < 0.15


LOST = "divergence per content token, share of depth 0: text minus single-token"


def per_token(curve, **others):
    """Tokens that lose what ``curve`` says; others, task -> what a second token at each loses."""
    table, controls = simulate(DEPENDS, n=48)
    tokens = controls["token_kl"]
    tokens = tokens[tokens["token"] < 2]
    second = tokens["token"] == 1
    for task, curve_of_task in curve.items():
        own = tokens["task"] == task
        tokens.loc[own, "kl"] = tokens.loc[own, "depth"].map(dict(enumerate(curve_of_task)))
        if task in others:
            at = tokens.loc[own & second, "depth"]
            tokens.loc[own & second, "kl"] = at.map(dict(enumerate(others[task])))
    return table, controls | {"token_kl": tokens}


LINEAR, SQUARE = 1 - Z, 1 - Z**2


def test_loss_as_a_share_of_depth_0_is_exact_whatever_the_units_and_function_words():
    text = {"mcq": 4 * LINEAR, "vqa": LINEAR, "caption": 0.25 * SQUARE}
    table, controls = per_token(text, caption=np.where(Z < 1, 0.09, 0.0))
    rows = verdict("C4", table, control=controls).details.set_index("measure")
    exact = SQUARE[:-1].mean() - LINEAR[:-1].mean()
    assert rows.loc[LOST, ["estimate", "lo", "hi"]].tolist() == pytest.approx([exact] * 3)
    share = rows.loc["caption: divergence per content token, share of depth 0", "estimate"]
    nats = rows.loc["caption: divergence per content token, nats", "estimate"]
    assert (share, nats) == pytest.approx((SQUARE[:-1].mean(), 0.25 * SQUARE[:-1].mean()))


def test_means_are_divided_and_not_ratios_averaged():
    """Half of the images lose ten times as much, and keep it to the end."""
    table, controls = per_token({"mcq": LINEAR, "vqa": LINEAR, "caption": LINEAR})
    tokens = controls["token_kl"]
    large = (tokens["task"] == "caption") & tokens["image"].isin([f"i{i}" for i in range(24)])
    tokens.loc[large, "kl"] = np.where(tokens.loc[large, "depth"] < LAYERS, 10.0, 0.0)
    v = verdict("C4", table, control=controls)
    row = v.details.set_index("measure").loc[LOST]
    line = LINEAR[:-1].mean()
    assert row["estimate"] == pytest.approx((10 + line) / 11 - line)
    assert row["lo"] < row["estimate"] - 0.01


@pytest.mark.parametrize(
    ("moved", "change", "why"),
    [
        (29, {}, "of vqa, 29 images have a token that the image moves"),
        (30, {}, None),
        (0, {"tokens": "all"}, r"a token of vqa loses only 0\.080 nats without the image"),
        (0, {"tokens": "all", "scale": "nats"}, None),
    ],
)
def test_a_task_whose_tokens_need_no_image_says_nothing_about_tokens(moved, change, why):
    table, controls = per_token({"mcq": LINEAR, "vqa": LINEAR, "caption": SQUARE})
    tokens = controls["token_kl"]
    still = (tokens["task"] == "vqa") & ~tokens["image"].isin([f"i{i}" for i in range(moved)])
    tokens.loc[still, "kl"] = 0.08 * LINEAR[tokens.loc[still, "depth"]]
    entry = claim_entry("C4")
    v = verdict_by("C4", entry | {"per_token": entry["per_token"] | change}, table, controls)
    assert v.verdict == ("inconclusive" if why else "supported"), v.reason
    assert why is None or re.search(why, v.reason)


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
        (ALIKE, {"words": 1, "harm": UNITS[5]}),
        (LENGTH, {"harm": UNITS[1.2]}),
        (LENGTH, {"harm": UNITS[2], "tails": 1.0, "function_words": 0.34} | CLUSTERS),
    ],
    ids=["no contrast, other units", "1.2 x units", "2 x, heavy tails, clusters"],
)
def test_nulls_are_rarely_called_supported(hazards, options):
    options = {"n": 96, "other": 0.15} | options
    found = [decide(hazards, seed=s, **options).verdict for s in range(12)]
    assert found.count("supported") <= 2  # 3 or more of 12 at 5% has p = 0.02


@pytest.mark.parametrize(
    "options",
    [{}, {"harm": UNITS[0.5], "tails": 1.0} | CLUSTERS],
    ids=["function words", "half the units, heavy tails, clusters"],
)
def test_a_clear_effect_is_mostly_found_and_never_refuted(options):
    at = claim_entry("C4")["power_at"]
    hazards = {"mcq": needs(at["single"]), "vqa": needs(at["single"]), "caption": needs(at["text"])}
    options = {"n": 96, "function_words": 0.34, "other": at["other"]} | options
    found = [decide(hazards, seed=s, **options).verdict for s in range(6)]
    assert found.count("supported") >= 5
    assert "not supported" not in found


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
