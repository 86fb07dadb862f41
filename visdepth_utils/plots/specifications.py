"""The specification curve: a claim's effect under every registered analysis, and which they are."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.claims.verdict import COLOURS
from visdepth_utils.plots.bands import need
from visdepth_utils.plots.style import finish, styled

_NUMBERS = {"verdict", "effect", "lo", "hi"}


def specification_curve(analyses: pd.DataFrame, title: str = "") -> Figure:
    """Effects sorted by size above, the choices that each of them makes as dots below.

    After Simonsohn, Simmons and Nelson (2020), Nature Human Behaviour 4, 1208-1214. Colours are
    verdicts; the registered analysis, the first of ``claims.specifications``, is black and dashed.
    Analyses that could not be made are left out; where none could, the figure says why.
    """
    need(analyses, _NUMBERS, "analyses", "specifications")
    choices = [name for name in analyses if name not in _NUMBERS | {"reason"}]
    made = analyses[analyses["effect"].notna()].sort_values("effect", kind="stable")
    if made.empty:
        return _nothing(str(analyses["reason"].iloc[0]), title)
    places = pd.Series(np.arange(len(made)), made.index)
    options = [(name, option) for name in choices for option in analyses[name].drop_duplicates()]
    with styled():
        size = (7.2, 2.4 + 0.19 * len(options))
        heights = [2.0, 0.19 * len(options) + 0.3]
        fig, (top, below) = plt.subplots(2, 1, figsize=size, sharex=True, height_ratios=heights)
        _effects(top, made)
        for y, (name, option) in enumerate(reversed(options)):
            taken = made[made[name] == option]
            colours = taken["verdict"].map(COLOURS)
            below.scatter(places[taken.index], np.full(len(taken), y), s=6, c=colours, lw=0)
        below.set_yticks(
            range(len(options)), [f"{n}: {o}" for n, o in reversed(options)], fontsize=7
        )
        below.set(xlabel="analyses, sorted by their effect", ylim=(-0.7, len(options) - 0.3))
        below.grid(axis="x", visible=False)
        if 0 in places.index:
            for ax in (top, below):
                ax.axvline(places[0], color="black", lw=0.9, ls=(0, (4, 2)))
            top.plot([], [], color="black", lw=0.9, ls=(0, (4, 2)), label="registered analysis")
        finish(fig, [top], title, "line: 95% interval, by image")
    return fig


def _nothing(reason: str, title: str) -> Figure:
    """A line of text in the place of the curve."""
    with styled():
        fig = plt.figure(figsize=(7.2, 0.9))
        if title:
            fig.suptitle(title, fontsize=10.5)
        text = textwrap.fill(f"No analysis could be made: {reason}", 100)
        fig.text(0.5, 0.4, text, ha="center", va="center", fontsize=8.5)
        plt.close(fig)
    return fig


def _effects(ax: Axes, made: pd.DataFrame) -> None:
    """Effects with their intervals, coloured by the verdict."""
    for verdict, colour in COLOURS.items():
        at = np.flatnonzero(made["verdict"] == verdict)
        if len(at):
            rows = made.iloc[at]
            ax.vlines(at, rows["lo"], rows["hi"], color=colour, lw=1.0, alpha=0.35)
            ax.plot(at, rows["effect"], "o", color=colour, ms=2.6, mew=0, label=verdict)
    ax.axhline(0, color="#444444", lw=0.8, ls=":")
    ax.set_ylabel("effect")
