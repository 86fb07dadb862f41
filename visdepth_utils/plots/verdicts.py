"""The figure of notebook 10: the effect of every claim on every model, with its interval."""

import math

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.claims.verdict import COLOURS
from visdepth_utils.plots.bands import need
from visdepth_utils.plots.style import finish, styled


def effects_by_model(verdicts: pd.DataFrame, columns: int = 3) -> Figure:
    """One small panel per claim: effect and interval of each model, coloured by the verdict.

    Of ``all_verdicts``. A cross is the control; a model without an effect has no dot.
    """
    need(
        verdicts,
        {"claim", "model", "verdict", "effect", "lo", "hi", "control"},
        "verdicts",
        "all_verdicts",
    )
    claims = sorted(set(verdicts["claim"]))
    models = sorted(set(verdicts["model"]), reverse=True)
    rows = math.ceil(len(claims) / columns)
    with styled():
        size = (3.1 * columns + 1.2, (0.24 * len(models) + 0.75) * rows + 0.3)
        fig, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
        for ax, claim in zip(axes.flat, claims, strict=False):
            own = verdicts[verdicts["claim"] == claim].set_index("model")
            ax.axvline(0, color="#444444", lw=0.8, ls=":")
            for y, model in enumerate(models):
                if model in own.index:
                    _effect(ax, y, own.loc[model])
            ax.set(title=claim, ylim=(-0.6, len(models) - 0.4))
        for ax in axes.flat[len(claims) :]:
            ax.set_axis_off()
        for row in axes:
            row[0].set_yticks(range(len(models)), models, fontsize=8)
        ax = axes.flat[0]
        for verdict, colour in COLOURS.items():
            if verdict not in ("inconclusive", "not testable"):
                ax.plot([], [], "o", color=colour, ms=5, label=verdict)
        ax.plot([], [], "o", color=COLOURS["inconclusive"], ms=5, label="undecided")
        ax.plot([], [], "x", color="#777777", ms=5, label="control")
        finish(fig, [ax], "", "effect of each claim (its own unit), line: 95% interval")
    return fig


def _effect(ax: Axes, y: int, row: pd.Series) -> None:
    """A dot with its interval, and the control beside it."""
    if pd.notna(row["effect"]):
        colour = COLOURS.get(row["verdict"], "#555555")
        ax.plot([row["effect"]], [y], "o", color=colour, ms=5, mew=0)
        if pd.notna(row["lo"]) and pd.notna(row["hi"]):
            ax.plot([row["lo"], row["hi"]], [y, y], "-", color=colour, lw=1.6)
    if pd.notna(row["control"]):
        ax.plot([row["control"]], [y], "x", color="#777777", ms=5, mew=1.2)
