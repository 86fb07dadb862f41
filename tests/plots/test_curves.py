"""Curves of several models: what is kept of a run, read back and drawn on relative depth."""

import numpy as np
import pandas as pd
import pytest

from tests.plots.test_plots_sweeps import conditions_table, sweep_table
from visdepth_utils.plots.bands import retention
from visdepth_utils.plots.curves import COLUMNS, curves_by_model, geometry_curves
from visdepth_utils.plots.curves import retention_by_depth as by_depth
from visdepth_utils.runs.records import all_curves, read_curves, record, two_models
from visdepth_utils.runs.run import Run

BOTH = (("remove", "masked"), ("freeze", "masked"))


def bands_table(layers=5):
    rows = [
        (modality, layer, metric, layer / 10, layer / 20, layer / 5, 3)
        for modality in ("image", "text")
        for metric in ("entropy", "id_mle", "curvature")
        for layer in range(layers)
    ]
    columns = ["modality", "layer", "metric", "mean", "lo", "hi", "n_images"]
    return pd.DataFrame(rows, columns=columns)


def a_run(folder):
    return Run(folder, {"model": "m"})


def test_of_the_geometry_the_image_tokens_measures_are_kept():
    kept = geometry_curves(bands_table())
    assert list(kept.columns) == COLUMNS
    assert set(kept["measure"]) == {"entropy", "curvature"} and set(kept["series"]) == {"image"}
    assert (kept["layers"] == 4).all() and kept["mean"].tolist() == [0, 0.1, 0.2, 0.3, 0.4] * 2


def test_retention_is_that_of_the_figures_for_both_interventions():
    sweep, conditions = sweep_table(modes=BOTH), conditions_table()
    kept = by_depth(sweep, conditions)
    assert list(kept.columns) == COLUMNS
    assert set(kept["measure"]) == {"retention: vqa", "retention: caption"}
    own = sweep[(sweep["task"] == "vqa") & (sweep["mode"] == "freeze")]
    floor = conditions[(conditions["task"] == "vqa") & (conditions["condition"] == "blind")]
    rows = kept[(kept["measure"] == "retention: vqa") & (kept["series"] == "freeze")]
    assert np.allclose(rows[["mean", "lo", "hi"]], retention(own, floor)[["mean", "lo", "hi"]])
    no_gain = by_depth(sweep.assign(correct=0.5), conditions.assign(score=0.5))
    assert no_gain.empty and list(no_gain.columns) == COLUMNS


def test_curves_are_kept_read_back_and_recorded(tmp_path):
    run = a_run(tmp_path / "results" / "x")
    run.folder.mkdir(parents=True)
    geometry, retained = geometry_curves(bands_table()), by_depth(sweep_table(), conditions_table())
    run.keep_curves(geometry)
    run.keep_curves(retained)
    run.keep_curves(geometry.assign(mean=0.5))  # the same measures again
    table = read_curves(run.folder)
    assert len(table) == len(geometry) + len(retained)
    assert (table.loc[table["measure"] == "entropy", "mean"] == 0.5).all()
    again = table[table["measure"].isin(retained["measure"])].reset_index(drop=True)
    assert np.allclose(again[COLUMNS[2:]], retained[COLUMNS[2:]].astype(float), rtol=1e-4)
    for name in ("claims.json", "provenance.json"):
        (run.folder / name).write_text("[]" if name == "claims.json" else "{}")
    kept = record(run.folder, tmp_path / "kept")
    assert (kept / "curves.csv").read_text() == (run.folder / "curves.csv").read_text()
    verdicts = pd.DataFrame({"model": ["m/a", "m/b"], "run": ["x", "none"]})
    for folders in ((tmp_path / "results", tmp_path / "no"), (tmp_path / "no", tmp_path / "kept")):
        found = all_curves(verdicts, *folders)
        assert list(found) == ["m/a"] and found["m/a"].equals(table)
    (run.folder / "curves.csv").write_text("measure,series\n1,2\n")
    with pytest.raises(ValueError, match="curves.csv is not readable"):
        read_curves(run.folder)


def test_models_of_other_depth_share_an_axis_and_what_is_removed_is_broken():
    kept = pd.concat(
        [geometry_curves(bands_table()), by_depth(sweep_table(modes=BOTH), conditions_table())]
    )
    fig = curves_by_model({"m/a": kept, "m/b": geometry_curves(bands_table(9))})
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[-2:] == ["retention: vqa", "retention: caption"] and len(titles) == 4
    first, last = fig.axes[0], fig.axes[-1]
    assert [line.get_xdata()[-1] for line in first.get_lines()] == [1, 1]
    assert [line.get_label() for line in first.get_lines()] == ["m/a", "m/b"]
    styles = {line.get_label(): line.get_linestyle() for line in last.get_lines()}
    assert styles == {"m/a, image removed": "--", "m/a, image frozen": "-"}
    with pytest.raises(ValueError, match="run notebooks 01 and 09"):
        curves_by_model({})
    with pytest.raises(ValueError, match="curves of m/a lacks"):
        curves_by_model({"m/a": kept.drop(columns="lo")})


def test_two_models_are_compared_claim_by_claim():
    rows = [("C0", "a", "supported"), ("C0", "b", "supported"), ("C1", "a", "weaker")]
    rows += [("C1", "b", "not supported"), ("C6", "a", "inconclusive")]
    verdicts = pd.DataFrame(rows, columns=["claim", "model", "verdict"])
    assert two_models(verdicts, "a", "b") == (
        "The same verdict on both: C0 (supported). Different (a, b): C1 (weaker, not supported)."
    )
    assert two_models(verdicts, "a", "c") == ""
    assert "Different" not in two_models(verdicts[verdicts["claim"] == "C0"], "a", "b")
