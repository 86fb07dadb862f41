"""Figures of substituted states, for C3: maps of all pairs of layers, curves by their distance."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.plots.bands import LEAST_KL, bands, draw, need
from visdepth_utils.plots.style import COLOURS, CONTROL_STYLES, WIDE_INCHES, finish, panels, styled

GRID = {"image", "modality", "source_layer", "layer", "control", "kl", "similarity", "correct"}


def substitution_maps(grid: pd.DataFrame) -> Figure:
    """Heat maps of source layer by layer: divergence of the next token, and score lost.

    One column of panels per kind of state in ``substitution_grid`` (image, text, noise), the score
    only where answers were generated; rescaled rows are left out. Dots mark the plain model (source
    layer = layer). The colours end at what another picture's states do, where that was measured;
    its row stands on top of the image panel.
    """
    plain = _unscaled(grid)
    kinds = [(name, rows) for name, rows in _kinds(plain).items() if len(rows)]
    base = plain[(plain["source_layer"] == plain["layer"]) & (plain["control"] == "")]
    base_score = base.drop_duplicates(["image", "sample"])["correct"].astype(float).mean()
    other = plain[plain["control"] == "other image"].groupby("layer")[["kl", "correct"]].mean()
    values = {"kl": "divergence of the next token (nats)"}
    if np.isfinite(base_score):
        values["lost"] = "score lost"
    layers = sorted(set(plain["layer"]))
    with styled():
        size = (3.1 * len(kinds) + 0.9, 2.9 * len(values))
        fig, axes = plt.subplots(len(values), len(kinds), figsize=size, squeeze=False)
        for row, (value, label) in zip(axes, values.items(), strict=True):
            strip = other["kl"] if value == "kl" else base_score - other["correct"].astype(float)
            tables = [_table(rows, value, base_score, layers) for _, rows in kinds]
            widest = pd.concat([table.stack() for table in tables]).max()
            top = float(strip.max() if strip.notna().any() else widest)
            for ax, (name, _), table in zip(row, kinds, tables, strict=True):
                last = ax is row[-1]
                row_on_top = strip if name == "image states" else strip * np.nan
                _map(ax, table, row_on_top, top if top > 0 else 1.0, last, label)
                ax.set_title(name if value == "kl" else "")
                ax.set(xlabel="put in at layer", ylabel="states of layer")
        fig.tight_layout()
        plt.close(fig)
    return fig


def gap_curves(grid: pd.DataFrame) -> Figure:
    """Likeness of the answer and divergence of the next token by distance between the layers.

    Of the table of ``substitution_maps``. Likeness is ``similarity`` to the unmodified answer;
    without answers only the divergence is drawn. Another picture's states, which have no gap, are a
    dotted line.
    """
    plain = _unscaled(grid)
    plain = plain.assign(gap=(plain["source_layer"] - plain["layer"]).abs())
    styles = {
        "image states": (COLOURS["image"], "o", False),
        "text states": (COLOURS["text"], "s", False),
        "noise of the same size": (CONTROL_STYLES[0][0], "", True),
    }
    values = {"kl": "divergence of the next token (nats)"}
    if plain["similarity"].notna().any():
        values = {"similarity": "similarity to the unmodified answer"} | values
    other = plain[plain["control"] == "other image"]
    with styled():
        xlabel = "gap between the two layers"
        fig, axes = panels(len(values), size=WIDE_INCHES, xlabel=xlabel)
        for ax, (value, label) in zip(axes, values.items(), strict=True):
            least = LEAST_KL if value == "kl" else None
            for name, rows in _kinds(plain).items():
                colour, marker, control = styles[name]
                apart = rows[rows["gap"] > 0]
                curve = bands(apart, "gap", value)
                draw(ax, curve, colour, name, marker=marker, control=control, least=least)
            if other[value].notna().any():
                level = float(other[value].astype(float).mean())
                ax.axhline(level, color="#444444", ls=":", lw=1.2, label="another picture's states")
            ax.set(title=label)
            if value == "kl":
                ax.set_yscale("log")
            else:
                ax.set_ylim(-0.03, 1.03)
        finish(fig, axes, "")
    return fig


def _unscaled(grid: pd.DataFrame) -> pd.DataFrame:
    need(grid, GRID, "grid", "substitution_grid")
    plain = grid[~grid["rescaled"].astype(bool)] if "rescaled" in grid else grid
    need(plain, GRID, "grid without rescaled rows", "substitution_grid(rescale=(False,))")
    return plain


def _kinds(grid: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows by what was put in; the plain model (source_layer = layer) is in all of them."""
    own, noise = grid["control"] == "", grid["control"] == "noise"
    image, text = (grid["modality"] == name for name in ("image", "text"))
    return {
        "image states": grid[image & own],
        "text states": grid[text & own],
        "noise of the same size": grid[image & noise],
    }


def _table(rows: pd.DataFrame, value: str, plain: float, layers: list[int]) -> np.ndarray:
    """Donor x layer; NaN where a pair was not run (noise has no diagonal)."""
    column = "kl" if value == "kl" else "correct"
    rows = rows.assign(**{column: rows[column].astype(float)})
    wide = rows.pivot_table(index="source_layer", columns="layer", values=column, aggfunc="mean")
    wide = wide.reindex(index=layers, columns=layers)
    return wide if value == "kl" else plain - wide


def _map(
    ax: Axes, table: pd.DataFrame, strip: pd.Series, top: float, bar: bool, label: str
) -> None:
    """One heat map, lowest source layer at the bottom, another picture as a row of its own on top.

    The row is left empty where it means nothing, so that all maps have the same rows.
    """
    own = [(len(table) - 1 - i, i) for i in range(len(table))]  # the plain model
    table, offset = table.iloc[::-1], bool(len(strip))
    if len(strip):
        name = "another\npicture" if strip.notna().any() else ""
        table = pd.concat([strip.reindex(table.columns).to_frame(name).T, table])
    sns.heatmap(
        table.astype(float),
        ax=ax,
        vmin=0,
        vmax=top,
        cmap="mako_r",
        cbar=bar,
        cbar_kws={"label": label, "extend": "max"},
        linewidths=0.5,
        linecolor="#ffffff",
        square=True,
    )
    for row, column in own:
        ax.plot(column + 0.5, row + offset + 0.5, marker=".", ms=4, color="#888888")
    ax.set_facecolor("#ffffff")
    ax.grid(False)
    ax.tick_params(axis="y", rotation=0)
