"""Tables of text and image tokens as curves and comparisons by measure: what C2 decides on."""

import math
from typing import Any

import pandas as pd

from visdepth_utils.claims.c1_curves import margin_of, without_last
from visdepth_utils.claims.interchange import early_layer
from visdepth_utils.claims.interval import noted
from visdepth_utils.claims.late import UNCLEAR, Late, late
from visdepth_utils.claims.stabilisation import by_image, image_layer_matrix, interval

Spec = dict[str, Any]
Curves = dict[str, pd.DataFrame]  # measure -> (images x layers)
Parts = dict[str, Late]
NAN = float("nan")
IN_PLACE = "text in the image's places"
SHUFFLED = "shuffled labels"


def depth_of(table: pd.DataFrame) -> int:
    """Decoder layers L: entropy is measured at states 0..L."""
    return int(table.loc[table["metric"] == "entropy", "layer"].max())


def curves_of(spec: Spec, table: pd.DataFrame, modality: str) -> Curves:
    """Every measure of one group of tokens, from the first state that counts."""
    rows = table[table["modality"] == modality]
    if rows.empty:
        raise ValueError(f"table has no {modality!r} tokens: pass what text_geometry returns")
    out = {}
    for name, metric in spec["metrics"].items():
        if metric["column"] not in set(rows["metric"]):
            raise ValueError(f"table has no metric {metric['column']!r}: add it to metrics=")
        wide = image_layer_matrix(rows, metric["column"])
        wide = wide.loc[:, wide.columns >= spec["first_state"]]
        out[name] = wide.map(math.log) if metric["scale"] == "log" else wide
    return out


def complete(curves: list[pd.DataFrame]) -> pd.Index:
    """Images with every value in all of them."""
    images = curves[0].index
    for curve in curves:
        images = images[images.isin(curve.index[curve.notna().all(axis=1)])]
    return images


def why_missing(table: pd.DataFrame, names: tuple[str, ...]) -> str:
    """What is most often noted where a value is missing."""
    lost = table[table["modality"].isin(names) & table["value"].isna() & (table["layer"] > 0)]
    note = noted(lost)
    return "have no value" + (f" ({note})" if note else "")


def parts_of(spec: Spec, text: Curves, image: Curves, images: pd.Index, depth: int) -> Parts:
    """Every measure under the same resamples of images."""
    common, out = spec["common"], {}
    for name, metric in spec["metrics"].items():
        words, pixels = (without_last(spec, c[name].loc[images]) for c in (text, image))
        out[name] = late(
            words,
            pixels,
            margin=margin_of(spec, metric, words),
            early=early_layer(spec, depth),
            depth=depth,
            level=common["level"],
            resamples=common["resamples"],
            seed=common["seed"],
        )
    return out


def movement(spec: Spec, table: pd.DataFrame, images: pd.Index, depth: int) -> pd.DataFrame:
    """Do the states themselves move more from one third on? Text minus image, by image."""
    common, out = spec["common"], []
    for column in spec["representation_check"]["columns"]:
        means = {}
        for name in ("image", spec["text"]):
            curve = image_layer_matrix(table[table["modality"] == name], column).reindex(images)
            curve = curve.loc[:, curve.columns >= early_layer(spec, depth)]
            speed = 1 - curve if column.startswith("cka") else curve
            means[name] = speed.mean(axis=1, skipna=False)
        change = (means[spec["text"]] - means["image"]).to_frame()
        label, value, lo, hi = UNCLEAR, NAN, NAN, NAN
        if len(change) and change.notna().all(axis=None):
            mean, draws = by_image(change, common["resamples"], common["seed"])
            value, (lo, hi) = float(mean[0]), interval(draws[:, 0], common["level"])
            label = "text moves more" if lo > 0 else "no more" if value <= 0 else UNCLEAR
        row = {"measure": f"check: {column}", "metric": column, "label": label}
        out.append(row | {"difference": value, "lo": lo, "hi": hi})
    return pd.DataFrame(out)


def placed_text(
    spec: Spec, table: pd.DataFrame, image: Curves, images: pd.Index, depth: int
) -> Parts | None:
    """Text in the image's places against the image; None where it was not measured."""
    if IN_PLACE not in set(table["modality"]):
        return None
    text = curves_of(spec, table, IN_PLACE)
    whole = images.isin(complete(list(text.values())))
    return parts_of(spec, text, image, images, depth) if whole.all() else None


def rivals_of(
    spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame], images: pd.Index
) -> dict[str, Parts | None]:
    """Every control on exactly the images of the claim; None where one cannot be measured."""
    names = {"shuffled image": "image", "shuffled text": spec["text"]}
    mixed = table[table["modality"].isin(names)]
    given = dict(controls)
    if len(mixed):
        given[SHUFFLED] = mixed.assign(modality=mixed["modality"].map(names))
    depth, out = depth_of(table), {}
    for name, rows in given.items():
        if (own := depth_of(rows)) != depth:
            raise ValueError(f"control {name!r} has {own} layers, not {depth}: use one model")
        if lacking := set(images) - set(rows["image"]):
            few = f"{len(lacking)} of {len(images)} images"
            raise ValueError(f"control {name!r} lacks {few}: use the same samples")
        if spec["text"] not in set(rows["modality"]):
            out[name] = None
            continue
        image, text = (curves_of(spec, rows, kind) for kind in ("image", spec["text"]))
        whole = images.isin(complete([*image.values(), *text.values()])).all()
        out[name] = parts_of(spec, text, image, images, depth) if whole else None
    return out
