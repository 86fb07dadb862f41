"""Curves by depth of several models in one figure, on a common axis from input to output."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from visdepth_utils.plots.bands import draw, need, retention
from visdepth_utils.plots.geometry import LABELS
from visdepth_utils.plots.style import finish, panels, styled

COLUMNS = ["measure", "series", "depth", "layers", "mean", "lo", "hi"]
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#7B3294", "#A6761D", "#000000")
_LINES = {"image": {}, "freeze": {}, "remove": {"ls": "--"}}
_NAMES = {"image": "", "freeze": ", image frozen", "remove": ", image removed"}


def geometry_curves(bands: pd.DataFrame) -> pd.DataFrame:
    """The curves of image tokens that claim 1 judges, out of ``layer_bands``.

    For ``Run.keep_curves``: one row per measure and depth; ``series`` is ``"image"``.
    """
    need(bands, {"modality", "layer", "metric", "mean", "lo", "hi"}, "bands", "layer_bands")
    measures = ["entropy", "id_twonn", "curvature", "update_ratio", "cka_ahead"]
    rows = bands[(bands["modality"] == "image") & bands["metric"].isin(measures)]
    rows = rows.rename(columns={"metric": "measure", "modality": "series", "layer": "depth"})
    return rows.assign(layers=bands["layer"].max())[COLUMNS].reset_index(drop=True)


def retention_by_depth(sweep: pd.DataFrame, conditions: pd.DataFrame) -> pd.DataFrame:
    """The share of the gain left with image tokens frozen and removed, for ``Run.keep_curves``.

    ``sweep``: ``truncation_sweep`` in modes ``"freeze"`` and ``"remove"``; ``conditions``:
    ``evaluate`` without the picture. One row per task, mode and depth; ``measure`` is ``"retention:
    "`` and the task, ``series`` the mode. A task without a clear gain by the picture has no rows.
    """
    blind = conditions[conditions["condition"] == "blind"]
    parts = [pd.DataFrame(columns=COLUMNS)]
    for (task, mode), own in sweep.groupby(["task", "mode"], sort=False):
        if mode not in _LINES:
            continue
        curve = retention(own, blind[blind["task"] == task]).rename(columns={"x": "depth"})
        named = {"measure": f"retention: {task}", "series": mode, "layers": sweep["depth"].max()}
        parts.append(curve.assign(**named)[COLUMNS])
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def curves_by_model(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Curves of several models over relative depth: geometry of image tokens, then retention.

    ``tables``: model -> what ``geometry_curves`` and ``retention_by_depth`` returned. One panel per
    measure, one colour per model; frozen is solid, removed broken. ValueError if no model has a
    curve, or a column is missing.
    """
    for name, table in tables.items():
        need(table, set(COLUMNS), f"curves of {name}", "Run.keep_curves")
    if not tables:
        raise ValueError("no model has curves: run notebooks 01 and 09 on one")
    every = pd.concat(tables.values())
    measures = list(dict.fromkeys(every["measure"]))
    measures = [m for m in LABELS if m in measures] + [m for m in measures if m not in LABELS]
    with styled():
        fig, axes = panels(len(measures), 3, xlabel="relative depth")
        for ax, measure in zip(axes, measures, strict=True):
            for (model, table), colour in zip(tables.items(), _COLOURS * 3, strict=False):
                for series, own in table[table["measure"] == measure].groupby("series", sort=False):
                    curve = own.assign(x=own["depth"] / own["layers"]).sort_values("x")
                    label = model + _NAMES.get(series, f", {series}")
                    draw(ax, curve, colour, label, marker="", **_LINES.get(series, {}))
            ax.set(title=LABELS.get(measure, measure), xlim=(0, 1))
            ax.xaxis.get_major_locator().set_params(integer=False)
            if measure == "update_ratio":
                ax.set_yscale("log")
            if measure.startswith("retention"):
                ax.set_ylim(-0.15, 1.15)
        finish(fig, axes, "")
    return fig
