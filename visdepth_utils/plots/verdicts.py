"""The figure of notebook 10: the effect of every claim on every model, with its interval."""

import math
from textwrap import wrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.claims.registry import load_claims
from visdepth_utils.claims.verdict import COLOURS
from visdepth_utils.plots.bands import need
from visdepth_utils.plots.style import finish, styled


def effects_by_model(verdicts: pd.DataFrame, columns: int = 2) -> Figure:
    """One small panel per claim: effect and interval of each model, and its verdict in words.

    Of ``all_verdicts``. A cross is the control; a model without an effect has its word alone.
    """
    columns_needed = {"claim", "model", "verdict", "effect", "lo", "hi", "control"}
    need(verdicts, columns_needed, "verdicts", "all_verdicts")
    claims = sorted(set(verdicts["claim"]))
    models = sorted(set(verdicts["model"]), reverse=True)
    rows = math.ceil(len(claims) / columns)
    titles = load_claims()["claims"]
    with styled():
        size = (4.4 * columns + 0.6, (0.26 * len(models) + 0.8) * rows + 0.3)
        fig, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
        for ax, claim in zip(axes.flat, claims, strict=False):
            own = verdicts[verdicts["claim"] == claim].set_index("model")
            ax.axvline(0, color="#444444", lw=0.8, ls=":")
            for y, model in enumerate(models):
                if model in own.index:
                    _effect(ax, y, own.loc[model])
            known = titles.get(claim, {}).get("title", "")
            ax.set_title("\n".join(wrap(f"{claim} {known}", 42)), loc="left", weight="bold")
            ax.set(ylim=(-0.6, len(models) - 0.4))
        for ax in axes.flat[len(claims) :]:
            ax.set_axis_off()
        for row in axes:
            row[0].set_yticks(range(len(models)), models, fontsize=8)
        ax = axes.flat[0]
        ax.plot([], [], "o-", color="#555555", ms=5, label="effect")
        ax.plot([], [], "x", color="#777777", ms=5, label="control")
        note = "effect of each claim in its own unit; line: 95% interval; colour and word: verdict"
        finish(fig, [ax], "", note)
    return fig


def _effect(ax: Axes, y: int, row: pd.Series) -> None:
    """A dot with its interval, the control beside it, and the verdict at the edge."""
    colour = COLOURS.get(row["verdict"], "#555555")
    place = {"transform": ax.get_yaxis_transform(), "va": "center", "fontsize": 8}
    ax.text(1.02, y, row["verdict"], color=colour, **place)
    if pd.notna(row["effect"]):
        ax.plot([row["effect"]], [y], "o", color=colour, ms=5, mew=0)
        if pd.notna(row["lo"]) and pd.notna(row["hi"]):
            ax.plot([row["lo"], row["hi"]], [y, y], "-", color=colour, lw=1.6)
    if pd.notna(row["control"]):
        ax.plot([row["control"]], [y], "x", color="#777777", ms=5, mew=1.2)
