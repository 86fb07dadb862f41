"""Recommended depths, Pareto fronts and bounds of medians on tables whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from visdepth_utils.claims.savings import (
    measured_ratios,
    median_bounds,
    on_front,
    ratios_by_repetition,
    recommend_depth,
    scores_and_savings,
)

DEPTHS = range(9)


def answers(losses, n=200, seed=0, task="mcq"):
    """Right everywhere, save that a share ``losses[d]`` of the images is lost at depth d."""
    rng = np.random.default_rng(seed)
    draw = rng.random(n)
    rows = [
        {"sample": f"{task}{i}", "image": f"i{i}", "task": task, "mode": "remove", "depth": d}
        | {"correct": float(draw[i] >= losses[d])}
        for i in range(n)
        for d in DEPTHS
    ]
    return pd.DataFrame(rows)


STEP = [0.9, 0.9, 0.9, 0.9, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_the_last_depth_that_loses_is_not_recommended():
    found = recommend_depth(answers(STEP), "mcq", 0.03)
    assert (found.depth, found.lo, found.hi, found.n_images) == (5, 5, 5, 200)
    losses = found.losses.set_index("depth")
    assert losses["passes"].tolist() == [False] * 5 + [True] * 4
    assert losses.loc[8, "loss"] == losses.loc[8, "high"] == 0
    assert losses.loc[4, "loss"] == pytest.approx(0.5, abs=0.08)


def test_a_lucky_cut_behind_a_bad_one_is_not_recommended():
    lucky = [0.9, 0.0, 0.0, 0.9, 0.5, 0.0, 0.0, 0.0, 0.0]
    assert recommend_depth(answers(lucky), "mcq", 0.03).depth == 5


def test_no_cut_without_a_loss_means_the_whole_model():
    found = recommend_depth(answers([0.5] * 8 + [0.0]), "mcq", 0.03)
    assert (found.depth, found.lo, found.hi) == (8, 8, 8)
    assert recommend_depth(answers([0.0] * 9), "mcq", 0.03).depth == 0


def test_all_tasks_must_pass():
    other = [0.9] * 7 + [0.0, 0.0]
    table = pd.concat([answers(STEP), answers(other, task="vqa", seed=1)])
    assert recommend_depth(table, "vqa", 0.03).depth == 7
    assert recommend_depth(table, ["mcq", "vqa"], 0.03).depth == 7


def test_a_loss_at_the_tolerance_passes_one_time_in_twenty():
    """The error that counts: recommending a cut whose true loss is the tolerance."""
    at = [0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.0, 0.0, 0.0]
    wrong = [recommend_depth(answers(at, 150, s), "mcq", 0.1, resamples=500) for s in range(200)]
    share = np.mean([found.depth < 6 for found in wrong])
    # 5% and what 200 trials and the percentile bootstrap allow: 1 in 1000 would lie above
    assert share <= binom.ppf(0.999, 200, 0.07) / 200
    assert np.mean([found.depth == 6 for found in wrong]) > 0.85
    again = [recommend_depth(answers(at, 150, s), "mcq", 0.2, resamples=500) for s in range(20)]
    assert np.mean([found.depth == 5 for found in again]) > 0.9  # a tenth is below a fifth


def test_the_interval_covers_what_other_images_would_give():
    slope = [0.9, 0.6, 0.4, 0.2, 0.1, 0.05, 0.02, 0.0, 0.0]
    depths = [recommend_depth(answers(slope, 150, s), "mcq", 0.1, resamples=300) for s in range(60)]
    found = np.array([(d.lo, d.depth, d.hi) for d in depths])
    assert (found[:, 0] <= found[:, 1]).all() and (found[:, 1] <= found[:, 2]).all()
    usual = np.bincount(found[:, 1]).argmax()
    assert np.mean((found[:, 0] <= usual) & (usual <= found[:, 2])) >= 0.85
    assert depths[0].distribution.shape == (300,)


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9), st.floats(0.01, 0.5))
def test_a_larger_tolerance_never_asks_for_more_depth(losses, tolerance):
    table = answers([*losses[:8], 0.0], n=12)
    small = recommend_depth(table, "mcq", tolerance, resamples=50)
    large = recommend_depth(table, "mcq", 2 * tolerance, resamples=50)
    assert large.depth <= small.depth
    below = small.losses[small.losses["depth"] >= small.depth]
    assert below["passes"].all()


def test_bad_tables_are_named():
    table = answers(STEP)
    with pytest.raises(ValueError, match="no task 'vqa': it has mcq"):
        recommend_depth(table, "vqa", 0.03)
    with pytest.raises(ValueError, match="tolerance 0"):
        recommend_depth(table, "mcq", 0)
    with pytest.raises(ValueError, match="several modes"):
        recommend_depth(pd.concat([table, table.assign(mode="freeze")]), "mcq", 0.03)
    with pytest.raises(ValueError, match="among several"):
        recommend_depth(table[table["depth"] == 8], "mcq", 0.03)
    with pytest.raises(ValueError, match="1 images have a score"):
        recommend_depth(table[table["image"] == "i0"], "mcq", 0.03)
    with pytest.raises(ValueError, match="lacks column"):
        recommend_depth(table.drop(columns="correct"), "mcq", 0.03)


def test_bounds_of_a_median_by_hand():
    assert median_bounds(range(1, 10)) == (2, 8)  # P(Bin(9, 1/2) < 2) = 10 / 512
    assert median_bounds(range(1, 6)) == (1, 5)  # 1 / 32
    assert median_bounds([1, 2, 3, 4]) == (-np.inf, np.inf)  # 1 / 16 is more than 1 in 20


def test_bounds_of_a_median_hold_as_often_as_they_say():
    rng = np.random.default_rng(0)
    drawn = rng.exponential(size=(4000, 9)) ** 2
    low, high = np.array([median_bounds(row) for row in drawn]).T
    truth = np.log(2) ** 2
    assert np.mean(low > truth) < 0.03 and np.mean(high < truth) < 0.03


def naive_front(costs, scores):
    points = list(zip(costs, scores, strict=True))
    return [
        not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
        for cost, score in points
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_front_is_that_of_the_definition(points):
    costs, scores = zip(*points, strict=True)
    assert on_front(costs, scores).tolist() == naive_front(costs, scores)


def times(prefill, repeats=9, noise=0.0, again=1.0, image_tokens=576, seed=0):
    """Seconds that double in every repetition, so that only ratios within one can be right."""
    rng, rows = np.random.default_rng(seed), []
    last = len(prefill) - 1
    for r in range(repeats):
        for d, share in [*enumerate(prefill), (last, None)]:
            scale = 2.0**r * (1 + noise * rng.standard_normal())
            value = again if share is None else share
            row = {"repetition": r, "depth": d, "again": share is None, "prefill_s": scale * value}
            rows.append(row | {"decode_s": scale, "kv_bytes": 100 * (1 + d)})
    table = pd.DataFrame(rows)
    return table.assign(decoder="own", image_tokens=image_tokens, other_tokens=75)


def test_ratios_are_to_the_same_repetition():
    table = times([0.2, 0.6, 1.0], again=1.1)
    ratios = ratios_by_repetition(table)
    once = ratios[~ratios["again"]].groupby("depth")["prefill_ratio"]
    assert np.allclose(once.min(), [0.2, 0.6, 1.0]) and np.allclose(once.max(), [0.2, 0.6, 1.0])
    assert np.allclose(ratios.loc[ratios["again"], "prefill_ratio"], 1.1)
    found = measured_ratios(pd.concat([table, times([0.1, 0.5, 1.0], image_tokens=64)]))
    assert len(found) == 8 and found["repetitions"].eq(9).all()
    assert found.loc[found["image_tokens"] == 64, "prefill_ratio"].tolist()[:2] == [0.1, 0.5]
    assert found["kv_ratio"].tolist()[:3] == [1 / 3, 2 / 3, 1.0]
    cut = table[~((table["repetition"] == 3) & (table["depth"] == 2))]
    with pytest.raises(ValueError, match="whole model once in every repetition"):
        ratios_by_repetition(cut)
    with pytest.raises(ValueError, match="lacks column"):
        ratios_by_repetition(table.drop(columns="again"))


def test_scores_beside_savings():
    table = pd.concat([answers(STEP), answers([0.5] * 9, task="vqa", seed=1)])
    ratios = pd.DataFrame({"depth": DEPTHS, "prefill_ratio": np.linspace(0.2, 1, 9)})
    found = scores_and_savings(table, ratios).set_index(["task", "depth"])
    # the same score from depth 5 on: the cheapest of them is on the front, and so is the cheapest
    mcq = found.loc["mcq", "front_prefill"]
    assert mcq[mcq].index.tolist() == [0, 4, 5]
    assert found.loc["vqa", "front_prefill"].tolist() == [True] + [False] * 8
    assert (found["lo"] <= found["score"]).all() and (found["score"] <= found["hi"]).all()
    with pytest.raises(ValueError, match="depth 0 of the sweep has no ratio"):
        scores_and_savings(table, ratios[ratios["depth"] > 0])
