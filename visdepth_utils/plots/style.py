"""The one style of all figures: colour-blind safe (Okabe and Ito), bands explained, then closed."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

COLOURS = {"image": "#0072B2", "text": "#D55E00"}
"""Modality -> colour, the same in every figure."""

CONTROL_STYLES = (
    ("#5a5a5a", (4, 2)),
    ("#8a8a8a", (1, 1.5)),
    ("#a8a8a8", (6, 2, 1, 2)),
    ("#202020", (2, 2)),
)
"""Grey and dashes of each control."""
PANEL_INCHES = (3.2, 2.9)
WIDE_INCHES = (1.35 * 3.2, 3.2)
"""Of a panel; of each of two panels of curves by depth."""
DPI = 85


def styled() -> AbstractContextManager[None]:
    """The one style, as a context: it changes nothing outside, and no matplotlibrc changes it."""
    settings = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.8)}
    extra = {
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#e6e6e6",
        "svg.hashsalt": "visdepth",
    }
    return plt.style.context(["default", {**settings, **extra}])


def panels(
    n: int,
    columns: int | None = None,
    size: tuple[float, float] = PANEL_INCHES,
    xlabel: str = "",
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure of n panels of one size, ``columns`` in a row (None: all).

    With a name the x axis counts in whole numbers. ``options``: of ``plt.subplots``.
    """
    columns = columns or n
    rows = -(-n // columns)
    inches = (size[0] * columns, size[1] * rows)
    fig, grid = plt.subplots(rows, columns, figsize=inches, squeeze=False, **options)
    for ax in grid.flat[n:]:
        ax.remove()
    axes = list(grid.flat[:n])
    for ax in axes if xlabel else ():
        ax.set(xlabel=xlabel)
        ax.xaxis.get_major_locator().set_params(integer=True)
    return fig, axes


def finish(
    fig: Figure,
    axes: Sequence[Axes],
    title: str,
    note: str = "bands: 95% interval of the mean, by image",
) -> None:
    """One legend below the panels, which also says what the bands are; then close."""
    entries: dict[str, object] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for axis in (axis for ax in axes for axis in (ax.xaxis, ax.yaxis)):
        if not isinstance(axis.get_major_locator(), FixedLocator):
            # else a size in the reader's matplotlibrc decides how many ticks fit, when it is drawn
            axis.set_tick_params(labelsize=plt.rcParams["xtick.labelsize"])
    if title:
        fig.suptitle(title, fontsize=10.5)
    fig.legend(
        list(entries.values()),
        list(entries),
        loc="upper center",
        bbox_to_anchor=(0.5, 0.02),
        frameon=False,
        ncols=min(4, len(entries)),
        title=note,
        title_fontsize=8,
    )
    fig.tight_layout()
    plt.close(fig)
