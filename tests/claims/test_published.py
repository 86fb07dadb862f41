"""The plain reading of each claim: known answers by hand, its errors, and the sentence on it."""

import numpy as np
import pandas as pd
import pytest

from calibration.curves import image_table, late_change, text_table
from calibration.grids import NOT_AT_ALL, SAME, grid_table
from calibration.truncated import DEPENDS, REVERSED, sweep_tables
from visdepth_utils.claims.published import _early_share, published, what_separates
from visdepth_utils.claims.registry import load_claims, verdict

REGISTERED = load_claims()["claims"]


def test_claims_of_the_paper_have_a_plain_reading_and_ours_have_none():
    for name, entry in REGISTERED.items():
        assert ("as_published" in entry) == (entry.get("origin") != "ours"), name
    assert published("C9", pd.DataFrame()) is None


# --- C1 and C2: shares of a curve's whole change ---


def test_the_early_share_of_noiseless_curves_is_exact():
    curve = pd.DataFrame([[0.0, 3.0, 4.0, 3.5]] * 40, index=[f"i{i}" for i in range(40)])
    entry = {"common": {"resamples": 20, "seed": 0}}
    share, draws = _early_share(entry, curve, 1)
    assert share == 0.75  # a range of 1 is left of 4
    assert draws.tolist() == [0.75] * 20


def test_curves_that_settle_early_are_read_as_supported_and_others_are_not():
    early = published("C1", image_table("plateau", seed=1))
    late = published("C1", image_table("drift", seed=1))
    assert (early.verdict, late.verdict) == ("supported", "not supported")
    assert early.lo > 0.5 > late.hi


def test_text_that_keeps_changing_is_read_against_the_image():
    late = published("C2", text_table("text keeps changing", seed=2))
    other = published("C2", text_table("image keeps changing", seed=2))
    assert (late.verdict, other.verdict) == ("supported", "not supported")
    same = [published("C2", text_table((late_change(4),) * 3, seed=s)).verdict for s in range(6)]
    assert same.count("inconclusive") >= 5


# --- C3: likeness of outputs ---


def test_likeness_is_the_mean_over_pairs_of_different_layers():
    table = grid_table(SAME, n=40)
    own = table["source_layer"] == table["layer"]
    table["similarity"] = np.where(own, 0.0, np.where(table["source_layer"] > 6, 1.0, 0.98))
    found = published("C3", table)
    rows = table[~own & (table["modality"] == "image") & (table["control"] == "")]
    late = rows[rows[["source_layer", "layer"]].min(axis=1) >= 3]
    assert found.effect == pytest.approx(late["similarity"].mean())
    assert found.verdict == "supported"
    low = grid_table(NOT_AT_ALL, n=40).assign(similarity=0.5)
    assert published("C3", low).verdict == "not supported"


# --- C4: shares of the full score ---


def sweep(curves: dict[str, list[float]], n: int = 40) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"sample": f"{t}{i}", "image": f"i{i}", "task": t, "mode": "remove"}
            | {"depth": d, "correct": value}
            for t, curve in curves.items()
            for d, value in enumerate(curve)
            for i in range(n)
        ]
    )


def test_kept_scores_are_exact_without_noise():
    table = sweep({"mcq": [0.5, 1.0, 1.0], "vqa": [0.0, 0.5, 1.0], "caption": [0.0, 0.0, 0.8]})
    found = published("C4", table)
    # areas 0.875 of 1, 0.5 of 1, and 0.2 of 0.8
    assert found.effect == pytest.approx((0.875 + 0.5) / 2 - 0.25)
    assert found.verdict == "supported"


@pytest.mark.parametrize(
    ("hazards", "expected"), [(DEPENDS, "supported"), (REVERSED, "not supported")]
)
def test_the_plain_reading_of_known_sweeps(hazards, expected):
    assert published("C4", sweep_tables(hazards)[0]).verdict == expected


def test_equal_tasks_are_hardly_ever_read_as_different():
    readings = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = sweep(dict.fromkeys(("mcq", "vqa", "caption"), [0.1, 0.4, 0.9]), n=60)
        table["correct"] = (rng.random(len(table)) < table["correct"]).astype(float)
        readings.append(published("C4", table).verdict)
    assert readings.count("inconclusive") >= 17  # 1 in 20 is expected to be called different


def test_a_task_that_was_not_measured_is_said():
    found = published("C4", sweep({"mcq": [0.0, 1.0], "caption": [0.0, 1.0]}))
    assert (found.verdict, found.reason) == ("not testable", "table has no task 'vqa' in this mode")


# --- C5: what changes at all ---


def test_what_changes_at_all_is_counted_below_the_last_depth():
    rows = [
        {"image": f"i{i}", "mode": "remove", "control": "", "depth": d}
        | {"edit": 0.1 * (d < 2), "flip": float(d == 0)}
        for i in range(40)
        for d in range(4)
    ]
    noise = {"image": "i0", "mode": "remove", "control": "one pixel", "depth": 0}
    found = published("C5", pd.DataFrame([*rows, noise | {"edit": 0.0, "flip": 1.0}]))
    assert found.effect == pytest.approx(1 / 3)  # chains at two of three depths, answers at one
    assert found.verdict == "supported"


# --- the sentence ---


def test_the_sentence_says_what_lies_between_the_two_readings():
    table, controls = sweep_tables(DEPENDS, n=40)
    ours, plain = verdict("C4", table, control=controls), published("C4", table)
    assert ours.verdict == plain.verdict == "supported"
    adds = REGISTERED["C4"]["as_published"]["ours_adds"]
    assert what_separates(ours, plain) == f"The plain reading says the same; ours adds {adds}."
    alone = verdict("C4", table)
    assert alone.verdict == "inconclusive"
    text = f"The plain reading says supported; with {adds}, it is inconclusive."
    assert what_separates(alone, plain) == text
    assert "no plain reading" in what_separates(ours, None)
