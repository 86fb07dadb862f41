"""The specification curve shows what its table holds."""

import numpy as np
import pandas as pd
import pytest

from visdepth_utils.plots.specifications import specification_curve


def analyses() -> pd.DataFrame:
    rows = [
        ("a third", "TwoNN", "supported", 0.5),
        ("a half", "TwoNN", "not supported", -0.1),
        ("a third", "likelihood", "supported", 0.2),
        ("a half", "likelihood", "not testable", np.nan),
    ]
    table = pd.DataFrame(rows, columns=["early part", "dimension", "verdict", "effect"])
    return table.assign(lo=table["effect"] - 0.1, hi=table["effect"] + 0.1, reason="")


def test_effects_are_sorted_and_the_registered_one_is_marked() -> None:
    fig = specification_curve(analyses(), "C1")
    top, below = fig.axes
    dots = {line.get_label(): line for line in top.lines if line.get_marker() == "o"}
    assert dots["not supported"].get_ydata().tolist() == [-0.1]
    assert dots["supported"].get_ydata().tolist() == [0.2, 0.5]
    assert dots["supported"].get_xdata().tolist() == [1, 2]
    (dashed,) = [line for line in below.lines if line.get_color() == "black"]
    assert set(dashed.get_xdata()) == {2}  # the first row has the largest effect
    assert "not testable" not in dots


def test_dots_below_are_the_choices_of_each_analysis() -> None:
    _, below = specification_curve(analyses()).axes
    names = [label.get_text() for label in below.get_yticklabels()]
    assert names == [
        "dimension: likelihood",
        "dimension: TwoNN",
        "early part: a half",
        "early part: a third",
    ]
    places = {
        name: sorted(float(x) for x, _ in dots.get_offsets())
        for name, dots in zip(names, below.collections, strict=True)
    }
    assert places["early part: a half"] == [0]
    assert places["early part: a third"] == [1, 2]
    assert places["dimension: likelihood"] == [1]


def test_without_an_effect_the_figure_says_why() -> None:
    fig = specification_curve(analyses().assign(effect=np.nan, reason="no task caption"))
    assert "No analysis could be made: no task caption" in fig.texts[-1].get_text()


def test_a_missing_column_is_refused() -> None:
    with pytest.raises(ValueError, match="verdict"):
        specification_curve(analyses().drop(columns="verdict"))
