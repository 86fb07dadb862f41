"""The rule of C0 on sweeps whose two depths are known."""

import numpy as np
import pandas as pd
import pytest

from calibration.frozen import frozen_tables
from visdepth_utils.claims.bootstrap import Interval
from visdepth_utils.claims.c0 import Depth, early_depth, least_depth, title_answer
from visdepth_utils.claims.judge import judge
from visdepth_utils.claims.published import published
from visdepth_utils.claims.registry import claim_entry, verdict, verdict_by
from visdepth_utils.measure.truncation import FROZEN_OTHER

LATE_TEXT = {"mcq": 0.0, "vqa": 0.0, "chart": 0.0, "caption": 0.5}


def decide(processes, reads, **options):
    table, controls = frozen_tables(processes, reads, **options)
    return verdict("C0", table, control=controls, p_value=False)


@pytest.mark.parametrize(
    ("processes", "reads", "options", "expected", "why"),
    [
        (0.0, 0.6, {}, "supported", "are read but need not be processed (mcq: processed until 0"),
        (0.12, 0.6, {"n": 192}, "supported", "must process until depth"),
        (0.5, 0.9, {}, "weaker", "must process until depth 7"),
        (LATE_TEXT, 0.9, {}, "weaker", "(caption), less long than it must read"),
        (0.5, 0.5, {}, "not supported", "costs as much as removing"),
        (0.25, 0.25, {}, "not supported", "costs as much as removing"),
        (
            0.0,
            0.6,
            {"harmless": FROZEN_OTHER[:1]},
            "weaker",
            "freeze other image costs mcq as little",
        ),
        (0.0, 0.6, {"harmless": FROZEN_OTHER[1:]}, "weaker", "freeze noise costs mcq as little"),
        (0.0, 0.6, {"n": 20}, "inconclusive", "20 images"),
        (0.0, 0.6, {"accuracy": 0.25, "guess": 0.25}, "not testable", "the model cannot do it"),
        (0.0, 0.6, {"other": 0.95}, "not testable", "another picture brings"),
    ],
)
def test_verdict_on_known_sweeps(processes, reads, options, expected, why):
    v = decide(processes, reads, **options)
    assert v.verdict == expected, v.reason
    assert why in v.reason


def test_one_task_that_must_be_processed_as_long_as_read_refutes_it():
    v = decide(
        {**LATE_TEXT, "caption": 0.7},
        {**LATE_TEXT, "mcq": 0.6, "vqa": 0.6, "chart": 0.6, "caption": 0.5},
        n=192,
    )
    assert v.verdict == "not supported"
    assert v.reason.startswith("caption needs processing as long as reading")


def exact(frozen: list[float], removed: list[float]) -> tuple[pd.DataFrame, dict]:
    """All images alike: every interval is a point."""
    rows, blind = [], []
    for task in claim_entry("C0")["tasks"]:
        curves = {"freeze": frozen, "remove": removed} | dict.fromkeys(FROZEN_OTHER, removed)
        for mode, curve in curves.items():
            for depth, score in enumerate(curve):
                rows += [(f"{task} {i}", f"i{i}", task, mode, depth, score) for i in range(40)]
        blind += [(f"i{i}", task, name, 0.2) for i in range(40) for name in ("blind", "other")]
    columns = ["sample", "image", "task", "mode", "depth", "correct"]
    conditions = pd.DataFrame(blind, columns=["image", "task", "condition", "score"])
    return pd.DataFrame(rows, columns=columns), {"conditions": conditions}


def test_depths_and_effect_are_exact_where_all_images_are_alike():
    """Gain 0.8; a tenth of it is 0.08. Frozen: lost at depth 0 alone. Removed: lost below 5."""
    frozen = [0.6, 0.95, 0.95, 1.0, 1.0, 1.0, 1.0]
    removed = [0.2, 0.2, 0.2, 0.2, 0.6, 0.95, 1.0]
    table, controls = exact(frozen, removed)
    v = verdict("C0", table, control=controls)
    rows = v.details.set_index("measure")
    for task in claim_entry("C0")["tasks"]:
        process, read = (rows.loc[f"{task}: must {x} until depth"] for x in ("process", "read"))
        assert process[["estimate", "lo", "hi"]].tolist() == [1, 1, 1]
        assert read[["estimate", "lo", "hi"]].tolist() == [5, 5, 5]
        kept = rows.loc[f"{task}: kept, freeze from depth 0 on"]
        assert kept["estimate"] == pytest.approx(0.5)
        assert kept["margin"] == pytest.approx(0.9)
    area = np.mean(np.subtract(frozen[:-1], removed[:-1])) / 0.8
    assert (v.effect, *v.ci) == pytest.approx((area,) * 3)
    assert v.verdict == "supported"
    assert "must process until depth 1 of 6 at most" in v.reason
    assert v.control_effect == pytest.approx(0)  # at depth 1, where freezing is harmless
    assert v.controls["control"][0] == "freeze other image (mcq, depth 1)"
    plain = published("C0", table)
    assert (plain.verdict, plain.effect) == ("supported", pytest.approx(0.95))


def test_the_titles_question_is_answered_in_the_numbers_of_the_verdict():
    table, controls = exact([0.6, 0.95, 0.95, 1, 1, 1, 1], [0.2, 0.2, 0.2, 0.2, 0.6, 0.95, 1])
    entry = verdict("C0", table, control=controls, model="m/x").to_dict()
    text = title_answer(entry)
    assert text == (
        "m/x, 40 images: the verdict is supported. With image states frozen from the first depth "
        "on, 0.50 of what the picture brings is left, by task; with image tokens removed from "
        "there on, 0.00. Until which depth they must be processed, and read: "
        "mcq 1 and 5, vqa 1 and 5, caption 1 and 5, chart 1 and 5."
    )
    assert "supported (fragile). With" in title_answer(entry | {"robustness": {"fragile": True}})
    removed = next(row for row in entry["details"] if "vqa: kept, remove" in row["measure"])
    removed["estimate"] = -0.001  # no minus before a zero
    assert "from there on, 0.00. Until" in title_answer(entry)
    assert title_answer(entry | {"details": [], "reason": "why"}).endswith("supported (why).")


def test_a_dip_at_a_deeper_layer_counts():
    """Harmless at 0 and harmful later: processing is needed until the dip has passed."""
    point = {d: Interval(x, x, x, x, x) for d, x in enumerate([0.0, 0.3, 0.0, 0.0])}
    assert least_depth(point, 0.1) == Depth(value=2, lo=0, hi=2)
    assert str(Depth(2, 0, 2)) == "0 to 2"
    unclear = {0: Interval(0.3, 0.2, 0.4, 0.2, 0.4), 1: Interval(0.08, 0, 0.2, 0.01, 0.18)}
    unclear |= {2: Interval(0, 0, 0, 0, 0)}
    assert least_depth(unclear, 0.1) == Depth(value=1, lo=1, hi=2)
    assert least_depth({0: Interval(0.0, 0, 0, 0, 0)}, 0.1) == Depth(0, 0, 0)


@pytest.mark.parametrize(("layers", "expected"), [(6, 2), (11, 3), (12, 4), (30, 10)])
def test_early_is_a_third_rounded_down(layers, expected):
    assert early_depth({"early": "1/3"}, layers) == expected


def test_nothing_is_supported_without_controls():
    table, controls = frozen_tables(0.0, 0.6)
    alone = verdict("C0", table)
    assert (alone.verdict, alone.reason) == (
        "inconclusive",
        "mcq was not tried with another picture",
    )
    bare = table[~table["mode"].isin(FROZEN_OTHER)]
    v = verdict("C0", bare, control=controls)
    assert (v.verdict, v.reason.split(" (")[0]) == (
        "inconclusive",
        "freeze other image was not measured",
    )


def test_a_mode_that_was_not_measured_is_named():
    table, controls = frozen_tables(0.0, 0.6)
    v = verdict("C0", table[table["mode"] != "freeze"], control=controls)
    assert v.reason == "table has no task 'mcq' in mode freeze"
    spec = claim_entry("C0")
    few = table[table["depth"] <= 4]
    assert "4 decoder layers" in verdict_by("C0", spec, few, controls).reason


def test_depths_that_cannot_be_frozen_leave_p_at_the_first_that_can():
    """DeepStack: freezing starts at a later depth, so that less is not known."""
    table, controls = frozen_tables(0.0, 0.6)
    frozen = table["mode"].isin(["freeze", *FROZEN_OTHER])
    v = verdict("C0", table[~frozen | (table["depth"] >= 3)], control=controls)
    assert v.verdict == "supported"
    assert "must process until depth 3 of 12 at most" in v.reason


def test_other_analyses_are_made():
    table, controls = frozen_tables(0.0, 0.6)
    v = judge("C0", table, control=controls)
    assert v.plain.verdict == v.verdict == "supported"
    assert v.robustness.n == len(v.analyses) == 48
    assert v.robustness.agree > 0.9
