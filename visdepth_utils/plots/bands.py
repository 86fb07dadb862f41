"""Curves with 95% bands by image, from the tables of the sweeps, and how they are drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from visdepth_utils.claims.bootstrap import Bootstrap, cluster_bootstrap

LEAST_KL = 1e-4
"""Nats; on logarithmic axes smaller divergences are drawn here."""


def need(table: pd.DataFrame, columns: set[str], name: str, source: str, *one: str) -> None:
    """Refuse a table that lacks columns or rows; the ValueError names what makes such a table.

    ``one``: columns that must hold one value only, where the table has them.
    """
    if missing := columns - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(f"{name} lacks column(s) {names}: pass what {source} returns")
    if table.empty:
        raise ValueError(f"{name} has no rows: pass what {source} returns")
    for column in one:
        if column in table and table[column].nunique() > 1:
            raise ValueError(f"{name} holds several {column}s: pass the rows of one")


def bands(rows: pd.DataFrame, x: str, value: str) -> pd.DataFrame:
    """Mean of a value at each x, and its interval by image: ``x, mean, lo, hi``, sorted by x.

    All x of one image are resampled together, so that a curve moves as a whole. Several rows of one
    image and x are averaged; rows without a value are left out, and without any the result is
    empty. With one image the bounds are NaN.
    """
    known = rows[rows[value].notna()]
    wide = known.assign(**{value: known[value].astype(float)}).pivot_table(
        index="image", columns=x, values=value, aggfunc="mean"
    )
    if wide.empty:
        return pd.DataFrame(columns=["x", "mean", "lo", "hi"])
    found = cluster_bootstrap(wide.to_numpy(), wide.index.to_numpy())
    return band_table(wide.columns, found)


def gains(sweep: pd.DataFrame, floor: pd.DataFrame) -> bool | None:
    """Whether the full model scores above the floor, by the 95% interval over images.

    True beyond doubt, False where it does not, None where it cannot be asked: no scores, no floor,
    or fewer than two images, which have no interval. Arguments and error as for ``retention``.
    """
    wide, none = _scores(sweep, floor)
    if len(wide) < 2:
        return None
    found = cluster_bootstrap((wide[:, -1:], none), np.arange(len(wide)), lambda s, b: s - b)
    return bool(found.lo[0] > 0)


def retention(sweep: pd.DataFrame, floor: pd.DataFrame) -> pd.DataFrame:
    """Share of the gain by the picture that is left at each depth: (s_d - s_0) / (s_L - s_0).

    Columns ``x`` (depth), ``mean, lo, hi``: ratios of means, bounds by image; images without a
    value at some depth are left out. Empty if the gain s_L - s_0 is not above 0 beyond doubt
    (``gains``), because then the ratio says nothing. ``sweep``: ``truncation_sweep`` of one task
    and mode with depth L. ``floor``: scores without the picture, columns ``image, score``;
    ValueError if it has some of the images but not all.
    """
    if not gains(sweep, floor):
        return pd.DataFrame(columns=["x", "mean", "lo", "hi"])
    tables = _scores(sweep, floor)

    def ratio(scores: np.ndarray, blind: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return (scores - blind) / (scores[..., -1:] - blind)

    found = cluster_bootstrap(tables, np.arange(len(tables[0])), ratio)
    return band_table(sorted(set(sweep["depth"])), found)


def draw(
    ax: Axes,
    curve: pd.DataFrame,
    colour: str,
    label: str,
    *,
    marker: str = "o",
    control: bool = False,
    least: float | None = None,
    **line: Any,
) -> None:
    """Draw a curve of ``bands`` or ``retention`` with its band; a control broken, without markers.

    An empty curve draws nothing. Values below ``least`` are drawn at it (logarithmic axes have no
    0), on a line that says so. ``line``: further settings of the line.
    """
    if curve.empty:
        return
    x = curve["x"].to_numpy(float)
    mean, lo, hi = (curve[k].to_numpy(float) for k in ("mean", "lo", "hi"))
    if least is not None:
        floor = f"drawn here: {least:g} or less"
        drawn = [line for line in ax.get_lines() if line.get_label() == floor]
        below = bool(drawn) or (mean < least).any() or (lo < least).any()
        mean, lo, hi = (np.clip(values, least, None) for values in (mean, lo, hi))
    ax.fill_between(x, lo, hi, color=colour, alpha=0.12 if control else 0.2, lw=0)
    style = (
        {"lw": 1.1, "dashes": (4, 2), "alpha": 0.75} if control else {"lw": 1.8, "marker": marker}
    )
    ax.plot(x, mean, color=colour, label=label, ms=3.5, mew=0, **{**style, **line})
    if least is not None and below:
        for old in drawn:  # last in the legend
            old.remove()
        ax.axhline(least, color="#444444", lw=0.9, ls="-.", label=floor)


def _scores(sweep: pd.DataFrame, floor: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Scores (images, depths) and floors (images, 1), in order of appearance, none with a gap."""
    cells = sweep.assign(score=sweep["correct"].astype(float)).groupby(["image", "depth"])["score"]
    wide = cells.mean().unstack("depth").reindex(sweep["image"].unique())
    none = floor.assign(score=floor["score"].astype(float)).groupby("image")["score"].mean()
    lacking = (~wide.index.isin(none.index)).sum()
    if 0 < lacking < len(wide):
        raise ValueError(
            f"floor lacks {lacking} of {len(wide)} images: evaluate the samples of the sweep"
        )
    none = none.reindex(wide.index)
    known = wide.notna().all(axis=1) & none.notna()
    return wide[known].to_numpy(float), none[known].to_numpy(float)[:, None]


def band_table(x: Sequence, mean: Bootstrap) -> pd.DataFrame:
    """Columns ``x, mean, lo, hi`` of a bootstrapped mean."""
    columns = {"x": list(x), "mean": mean.estimate, "lo": mean.lo, "hi": mean.hi}
    return pd.DataFrame(columns).reset_index(drop=True)


def draw_dot(ax: Axes, x: float, row: pd.Series, **style: Any) -> None:
    """Draw a mean with its interval, ``mean, lo, hi`` of a row."""
    bar = [[max(row["mean"] - row["lo"], 0)], [max(row["hi"] - row["mean"], 0)]]
    ax.errorbar([x], [row["mean"]], bar, **style)
