"""Figures of C6: what a cut costs and training gives back, and what ways to decode make of it."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from visdepth_utils.plots.bands import bands, draw_dot, need
from visdepth_utils.plots.style import finish, styled

STATES = {
    "full": ("#444444", "whole model"),
    "full trained": ("#999999", "whole model, same training"),
    "truncated": ("#D55E00", "cut"),
    "shuffled": ("#E69F00", "cut, trained with shuffled pictures"),
    "recovered": ("#0072B2", "cut, trained"),
}
"""State -> colour and name, in the order of drawing; controls are paler."""
MARKERS = {"greedy": "o", "temperature": "s", "top-p": "^", "beam": "D"}


def recovery_dots(table: pd.DataFrame) -> Figure:
    """Score of every state, one panel per task, of ``recovery_sweep`` with one cut.

    The shaded range is what the cut costs: recovery is how far it is crossed.
    """
    need(table, {"image", "task", "state", "cut", "score"}, "table", "recovery_sweep", "cut")
    tasks = list(dict.fromkeys(table["task"]))
    present = [state for state in STATES if state in set(table["state"])]
    with styled():
        size = (max(4.0, 2.1 * len(tasks) + 1.2), 3.2)
        fig, axes = plt.subplots(1, len(tasks), figsize=size, sharey=True, squeeze=False)
        for ax, task in zip(axes[0], tasks, strict=True):
            means = bands(table[table["task"] == task], "state", "score").set_index("x")
            ax.axhspan(*means.loc[["truncated", "full"], "mean"], color="#000000", alpha=0.05)
            for i, state in enumerate(present):
                if state in means.index:
                    colour, label = STATES[state]
                    style = {"fmt": "o", "color": colour, "ms": 6, "lw": 1.6, "label": label}
                    draw_dot(ax, i, means.loc[state], **style)
            ax.set(title=task, xticks=[], xlim=(-0.6, len(present) - 0.4), ylim=(-0.05, 1.05))
        axes[0][0].set_ylabel("mean score")
        finish(fig, axes[0], "", "lines: 95% interval of the mean, by image; shaded: lost")
    return fig


def strategy_dots(decoded: pd.DataFrame) -> Figure:
    """Mean score by way of decoding: the spread is what the choice of strategy makes.

    One panel per task, a dot per strategy and seed, of ``strategies.decode`` with a column
    ``state``.
    """
    need(decoded, {"task", "state", "strategy", "seed", "score"}, "decoded", "strategies.decode")
    tasks = list(dict.fromkeys(decoded["task"]))
    present = [state for state in STATES if state in set(decoded["state"])]
    with styled():
        size = (max(4.0, 2.6 * len(tasks) + 0.8), 2.9)
        fig, axes = plt.subplots(1, len(tasks), figsize=size, sharey=True, squeeze=False)
        for ax, task in zip(axes[0], tasks, strict=True):
            own = decoded[decoded["task"] == task]
            means = own.groupby(["state", "strategy", "seed"], sort=False)["score"].mean()
            for (state, strategy, seed), score in means.items():
                x = present.index(state) + 0.14 * (list(MARKERS).index(strategy) - 1.5)
                marker = MARKERS[strategy]
                colour = STATES[state][0]
                ax.plot([x + 0.02 * seed], [score], marker, color=colour, ms=5, mew=0, alpha=0.8)
            names = [STATES[state][1] for state in present]
            ax.set_xticks(range(len(present)), names, fontsize=8)
            ax.set(title=task, xlim=(-0.6, len(present) - 0.4), ylim=(-0.05, 1.05))
        for strategy, marker in MARKERS.items():
            axes[0][0].plot([], [], marker, color="#444444", ms=5, mew=0, label=strategy)
        axes[0][0].set_ylabel("mean score")
        finish(fig, axes[0], "", "a dot is a mean over samples, one per strategy and seed")
    return fig
