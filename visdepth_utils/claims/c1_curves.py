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


def parts_of(spec: Spec, curves: Curves, depth: int) -> dict[str, Part]:
    """Every measure under the same resamples of images."""
    common, out = spec["common"], {}
    for name, metric in spec["metrics"].items():
        margin = metric["margin"]
        out[name] = settling(
            curves[name],
            margin=math.log(margin) if metric["scale"] == "log" else float(margin),
            early=early_layer(spec, depth),
            fall=metric["pattern"] == "compresses",
            level=common["level"],
            resamples=common["resamples"],
            seed=common["seed"],
        )
    return out
