"""The checks of a verdict as one table."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from visdepth_utils.plots.checks import check_table, digits

NAN = math.nan


def passed(measure, label, estimate, lo, hi, margin):
    columns = ["measure", "label", "estimate", "lo", "hi", "margin"]
    details = pd.DataFrame([[measure, label, estimate, lo, hi, margin]], columns=columns)
    (row,) = check_table(SimpleNamespace(details=details)).table.to_dict("records")
    return row["pass"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000551, "0.001"),
        (-0.0004, "0"),
        (0.0051, "0.005"),
        (-0.0123, "-0.012"),
        (0.76, "0.76"),
        (0.9994, "0.999"),
        (0.6, "0.6"),
        (1.5601, "1.56"),
        (34.29, "34.3"),
        (8.0, "8"),
        (1234.5, "1234"),
        (NAN, ""),
        (None, ""),
    ],
)
def test_numbers_have_two_or_three_digits(value, text):
    assert digits(value) == text


def test_a_row_by_hand():
    details = pd.DataFrame(
        [("kept: a <b>", "positive", 0.192, 0.164, 0.22, 0.05)],
        columns=["measure", "label", "estimate", "lo", "hi", "margin"],
    )
    checks = check_table(SimpleNamespace(details=details))
    told = ["kept: a <b>", "0.192", "0.164 to 0.22", "0.05", "yes", "positive"]
    assert checks.table.iloc[0].tolist() == told
    assert repr(checks).split() == " ".join([*checks.table.columns, *told]).split()
    assert "kept: a &lt;b&gt;" in checks._repr_html_()


def test_the_rules_word_decides_where_it_says_one():
    assert passed("chains minus answers", "positive", 0.09, 0.01, 0.15, 0.05) == "yes"
    assert passed("chains minus answers", "not above 0", 0.09, 0.06, 0.15, 0.05) == "no"
    assert passed("gain", "beside; used", 0.9, 0.8, 1.0, 0.0) == "yes"
    assert passed("index", "unclear", 0.9, 0.8, 1.0, 0.0) == "unclear"
    assert passed("index", "skipped: no gain", 0.9, 0.8, 1.0, 0.0) == "no"
    assert passed("time there", "the clock does not tell", 0.7, 0.6, 0.7, 0.75) == "unclear"
    assert passed("score", "", 0.9, 0.8, 1.0, NAN) == ""


def test_else_the_interval_decides_and_of_a_loss_less_is_better():
    assert passed("kept, freeze", "", 1.0, 0.95, 1.0, 0.9) == "yes"
    assert passed("kept, remove", "", 0.1, 0.0, 0.2, 0.9) == "no"
    assert passed("share back", "one training", 0.5, 0.4, 0.6, 0.5) == "unclear"
    assert passed("mcq: loss there", "90% interval", 0.0, 0.0, 0.02, 0.03) == "yes"
    assert passed("mcq: loss there", "90% interval", 0.1, 0.05, 0.2, 0.03) == "no"
    assert passed("prefill: median time there", "clock", 0.7, 0.66, 0.7504, 0.75) == "unclear"


def test_the_other_claims_name_their_number_otherwise():
    bounds = {"lo": 0.1, "hi": 0.3, "margin": 0.05}
    shape = {"measure": "entropy", "label": "changes late", "left": 0.2} | bounds
    move = {"measure": "update", "label": "text moves more", "difference": 0.2} | bounds
    for row, word, asked in (
        (shape, "no", "entropy: what is left of its change after one third of the depth"),
        (move, "yes", "update: text minus image"),
    ):
        table = check_table(SimpleNamespace(details=pd.DataFrame([row]))).table
        assert table[["asked", "estimate", "pass"]].iloc[0].tolist() == [asked, "0.2", word]
    assert len(check_table(SimpleNamespace(details=pd.DataFrame())).table) == 0
