"""What is made once for all analyses is what each analysis would have made by itself."""

import numpy as np
import pandas as pd
import pytest

from calibration.curves import curves_table, early_change
from calibration.truncated import DEPENDS, sweep_tables
from visdepth_utils.claims.bootstrap import resample_means, resample_weights
from visdepth_utils.claims.once import once, only, same_tables, values_of
from visdepth_utils.claims.registry import claim_entry, verdict_by
from visdepth_utils.claims.specifications import _merged, choices, specifications

C4 = sweep_tables(DEPENDS, n=32)
C1 = (
    curves_table(early_change(3), n=32),
    {"random-init": curves_table(early_change(1), n=32, seed=1)},
)


@pytest.mark.parametrize("claim,table,controls", [("C1", *C1), ("C4", *C4)])
def test_every_analysis_is_what_its_rule_says_of_fresh_copies(claim, table, controls):
    entry = claim_entry(claim)
    entry["common"]["resamples"] = entry["common"]["specifications"]["resamples"]
    analyses = specifications(claim, table, control=controls, most=12)
    for row in analyses.to_dict("records"):
        spec = entry
        for name, options in choices(entry).items():
            spec = _merged(spec, options[row[name]])
        copies = {name: rows.copy() for name, rows in controls.items()}
        try:
            alone = verdict_by(claim, spec, table.copy(), copies)
        except ValueError as error:
            assert (row["verdict"], row["reason"]) == ("not testable", str(error))
            continue
        assert (row["verdict"], row["reason"]) == (alone.verdict, alone.reason)
        assert np.array_equal(
            [row["effect"], row["lo"], row["hi"]], [alone.effect, *alone.ci], equal_nan=True
        )


@pytest.mark.parametrize("images", [range(20), np.repeat(range(10), 2)], ids=["one row", "two"])
def test_means_of_resamples_are_those_of_rows_drawn_one_by_one(images):
    values = np.random.default_rng(0).normal(size=(20, 3))
    values[4, 1] = np.nan
    codes, weights = resample_weights(np.asarray(images), 50, seed=5)
    means = resample_means(values, codes, weights)
    count = codes.max() + 1
    for mean, drawn in zip(
        means, np.random.default_rng(5).integers(0, count, size=(50, count)), strict=True
    ):
        rows = np.concatenate([np.flatnonzero(codes == image) for image in drawn])
        assert mean == pytest.approx(np.nanmean(values[rows], axis=0))


def test_rows_are_chosen_once_inside_and_anew_outside():
    table = pd.DataFrame({"task": ["a", "b", "a"], "x": [1, 2, 3]})
    with same_tables():
        first = only(table, task="a")
        with same_tables():
            assert only(table, task="a") is first
        assert only(table, task="a") is first
        assert only(table, task=["a", "b"]).equals(table)
        assert only(table.copy(), task="a") is not first
        assert values_of(first, "x") == {1, 3}
    table.loc[0, "task"] = "b"
    assert only(table, task="a")["x"].tolist() == [3]
    with same_tables():
        assert only(table, task="a")["x"].tolist() == [3]


def test_arguments_that_cannot_be_told_apart_are_refused():
    @once
    def size(table, images):
        return len(images)

    table = pd.DataFrame()
    assert size(table, table.index) == 0
    with same_tables(), pytest.raises(TypeError):
        size(table, table.index)
