"""Figures of savings: what is drawn, from tables whose numbers are known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tests.strict import no_warnings
from visdepth_utils.claims.savings import measured_ratios, scores_and_savings
from visdepth_utils.measure.costs import predicted_costs, shape_of
from visdepth_utils.measure.random_decoders import SIZES, predicted_sizes, text_config
from visdepth_utils.plots.costs import cost_front, savings_by_depth

SHAPE = shape_of(text_config("reference"))
LAST = SHAPE.layers


@pytest.fixture(autouse=True)
def no_warnings_and_no_figure_left_open():
    with no_warnings():
        yield
    assert plt.get_fignums() == []  # after an error too


def clock(counts=(64, 576)):
    """Prefill takes exactly the share of depths, half as much again in odd repetitions."""
    rows = [
        {"decoder": "own", "image_tokens": n, "repetition": r, "depth": d, "again": again}
        | {"prefill_s": (0.5 + 0.5 * d / LAST) * (1 + r % 2), "decode_s": 1.0 + r, "kv_bytes": 9}
        for n in counts
        for r in range(3)
        for d, again in [(0, False), (2, False), (LAST, False), (LAST, True)]
    ]
    return pd.DataFrame(rows)


def told(counts=(64, 576)):
    return pd.concat(predicted_costs(SHAPE, n, 75) for n in counts)


def points(tasks=("mcq", "vqa")):
    rows = [
        {"sample": f"{t}{i}", "image": f"i{i}", "task": t, "depth": d, "correct": float(d > i)}
        for t in tasks
        for i in range(4)
        for d in range(LAST + 1)
    ]
    return scores_and_savings(pd.DataFrame(rows), predicted_costs(SHAPE, 576, 75))


def test_points_are_measured_and_lines_predicted():
    fig = savings_by_depth(measured_ratios(clock()), told())
    prefill, _, kv = fig.axes
    assert prefill.get_title() == "prefill: time (lines: FLOPs)"
    lines = [line for line in prefill.lines if len(line.get_xdata()) == LAST + 1]
    assert len(lines) == 2
    expected = predicted_costs(SHAPE, 576, 75)["prefill_ratio"]
    assert np.allclose(lines[1].get_ydata(), expected)
    measured = [line for line in prefill.lines if line.get_marker() == "o"]
    middle = 0.5 + 0.5 * 2 / LAST
    assert np.allclose(measured[0].get_ydata(), [0.5, middle, 1.0])
    assert [line.get_ydata()[0] for line in prefill.lines if line.get_marker() == "x"] == [1, 1]
    # the whole model is drawn in every panel, and one legend names the counts
    assert all(any(np.allclose(line.get_ydata(), 1) for line in ax.lines) for ax in fig.axes)
    said = [text.get_text() for text in fig.legends[0].get_texts()]
    assert said == ["the whole model", "64 image tokens", "576 image tokens"]
    assert kv.get_ylim()[0] == 0


def test_the_front_is_joined_and_the_recommended_depth_marked():
    fig = cost_front(points(), recommended={"mcq": 4}, floors={"mcq": 0.25, "vqa": np.nan})
    mcq, vqa = fig.axes
    (line,) = [line for line in mcq.lines if line.get_marker() == "o"]
    assert line.get_ydata().tolist() == [0, 0.25, 0.5, 0.75, 1]  # behind it nothing is gained
    assert [text.get_text() for text in mcq.texts] == ["0", "1", "2", "3", "4"]
    said = [text.get_text() for text in fig.legends[0].get_texts()]
    assert said == ["recommended depth", "no picture"]
    assert len(vqa.get_legend_handles_labels()[0]) == 0
    assert [ax.get_title() for ax in fig.axes] == ["mcq", "vqa"]


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="576 image tokens were measured but not predicted"):
        savings_by_depth(measured_ratios(clock()), told((64,)))
    two = pd.concat([clock(), clock().assign(decoder="other")])
    with pytest.raises(ValueError, match="several decoders"):
        savings_by_depth(measured_ratios(two), told())
    with pytest.raises(ValueError, match="pass what costs.predicted_costs returns"):
        savings_by_depth(measured_ratios(clock()), told()[["depth"]])
    with pytest.raises(ValueError, match="pass what tradeoff.scores_and_savings returns"):
        cost_front(points().drop(columns="score"))


def test_sizes_side_by_side():
    table = predicted_sizes((576, 3000), 75)
    assert len(table) == 2 * len(SIZES)
    llava = table[(table["decoder"] == "LLaVA-1.5-7B") & (table["image tokens"] == 576)].iloc[0]
    assert llava["kv"] == pytest.approx((651 + 75) / (2 * 651))
    assert 0.5 < llava["prefill"] < 0.6 and llava["decode"] > 0.98
