"""Curves of image tokens for C1: what can be measured, and each measure's label by ``settling``."""

import math
from fractions import Fraction
from typing import Any

import pandas as pd

from visdepth_utils.claims.interval import noted
from visdepth_utils.claims.stabilisation import Part, image_layer_matrix, settling

Spec = dict[str, Any]
Curves = dict[str, pd.DataFrame]  # measure -> (images x layers)
COLUMNS = {"image", "modality", "layer", "metric", "value"}


def early_layer(spec: Spec, depth: int) -> int:
    """Last layer l with l / (L - 1) within ``z_star_max``."""
    return int(Fraction(spec["z_star_max"]) * (depth - 1))


def depth_of(table: pd.DataFrame) -> int:
    """Decoder layers L: entropy is measured at states 0..L."""
    return int(table.loc[table["metric"] == "entropy", "layer"].max())


def curves_of(spec: Spec, table: pd.DataFrame) -> tuple[Curves, int, str]:
    """Curves of the images that have every value, images asked for, most frequent note."""
    if missing := COLUMNS - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(f"table lacks column(s) {names}: pass what layer_geometry returns")
    rows = table[table["modality"] == spec["modality"]]
    if rows.empty:
        raise ValueError(f"table has no {spec['modality']} tokens: add them to modalities=")
    wide = {name: by_layer(rows, metric["column"]) for name, metric in spec["metrics"].items()}
    complete = rows["image"].drop_duplicates()
    for curve in wide.values():
        complete = complete[complete.isin(curve.index[curve.notna().all(axis=1)])]
    for name, metric in spec["metrics"].items():
        kept = wide[name].loc[complete]
        wide[name] = kept.map(math.log) if metric["scale"] == "log" else kept
    return wide, rows["image"].nunique(), noted(rows)


def by_layer(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric as (images x layers); a missing value of any sample leaves a gap."""
    if metric not in rows["metric"].unique():
        raise ValueError(f"table has no metric {metric!r}: add it to metrics= of layer_geometry")
    return image_layer_matrix(rows, metric)


def without_last(spec: Spec, curve: pd.DataFrame) -> pd.DataFrame:
    """The curve without its last ``drop_last`` states: many decoders jump in the last layers."""
    return curve.iloc[:, : curve.shape[1] - spec["drop_last"]]


def margin_of(spec: Spec, metric: Spec, curve: pd.DataFrame) -> float:
    """What still counts as settled, on the scale of the curve.

    Absolute as the metric says, or ``relative_margin`` of the range of its mean over depth.
    """
    if spec["relative_margin"] is not None:
        means = curve.mean()
        return float(spec["relative_margin"] * (means.max() - means.min()))
    return math.log(metric["margin"]) if metric["scale"] == "log" else float(metric["margin"])


def parts_of(spec: Spec, curves: Curves, depth: int) -> dict[str, Part]:
    """Every measure under the same resamples of images."""
    common, out = spec["common"], {}
    for name, metric in spec["metrics"].items():
        curve = without_last(spec, curves[name])
        out[name] = settling(
            curve,
            margin=margin_of(spec, metric, curve),
            early=early_layer(spec, depth),
            fall=metric["pattern"] == "compresses",
            level=common["level"],
            resamples=common["resamples"],
            seed=common["seed"],
        )
    return out
