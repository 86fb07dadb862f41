"""C2, text tokens keep restructuring: the rule behind the entry in data/claims.yaml.

The questions come in this order: can it be measured, does text still change when image tokens
should have settled and more than they do, do the states themselves move more, is that more than
position explains, and more than untrained models and shuffled labels show.
"""

import copy
import math
from typing import Any

import pandas as pd

from visdepth_utils.claims.bootstrap import aside, no_more, noted, require, said
from visdepth_utils.claims.c1 import margin_of, without_last
from visdepth_utils.claims.interchange import early_layer
from visdepth_utils.claims.stabilisation import (
    MORE,
    UNCLEAR,
    Late,
    by_image,
    image_layer_matrix,
    interval,
    late,
    least,
    mirrored,
)

Spec = dict[str, Any]
Curves = dict[str, pd.DataFrame]  # measure -> (images x layers)
Parts = dict[str, Late]
NAN = float("nan")
IN_PLACE = "text in the image's places"
SHUFFLED = "shuffled labels"
COLUMNS = {"image", "modality", "layer", "metric", "value"}


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C2.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``text_geometry`` of the trained model with shuffled labels, and ``placed_geometry``
            below it.
        controls: Name -> ``text_geometry`` of an untrained control on the same samples.

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If a table lacks a column, a metric or image tokens, or a control has other
            images or layers.
    """
    common = spec["common"]
    require(table, COLUMNS, "table", "text_geometry")
    depth, asked = depth_of(table), table["image"].nunique()
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    found["thresholds"] = thresholds(spec, depth)
    if spec["text"] not in set(table["modality"]):
        return found | said("not testable", f"table has no tokens of group {spec['text']!r}")
    image, text = (curves_of(spec, table, name) for name in ("image", spec["text"]))
    images = complete([*image.values(), *text.values()])
    found["n_images"] = len(images)
    if len(images) == 0 or len(images) < (1 - common["max_missing_share"]) * asked:
        why = why_missing(table, ("image", spec["text"]))
        return found | said("not testable", f"{asked - len(images)} of {asked} images {why}")
    if depth < common["min_layers"]:
        few = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {few}")

    parts = parts_of(spec, text, image, images, depth)
    effect, ci = mirrored(*least(parts), common["level"])
    found |= {"effect": effect, "ci": ci}
    check = movement(spec, table, images, depth)
    placed = placed_text(spec, table, image, images, depth)
    found["details"] = pd.concat([_details(spec, parts, placed), check], ignore_index=True)
    rivals = rivals_of(spec, table, controls, images)
    notes = {name: noted(t) for name, t in controls.items() if rivals[name] is None}
    found["controls"] = contrasts = _contrasts(spec, parts, rivals, notes)
    if len(contrasts):
        found["control_effect"] = float(contrasts["effect"].max())
    if len(images) < common["min_images"]:
        few = common["min_images"]
        return found | said("inconclusive", f"{len(images)} images; the rule asks for {few}")
    return found | (_pattern(parts, contrasts) or _attribution(check, placed, contrasts))


def variants(spec: Spec) -> dict[str, Spec]:
    """The same claim under the other settings that its ``sensitivity`` names.

    Args:
        spec: Entry of claims.yaml.

    Returns:
        Name of the variant -> changed entry.
    """
    out, asked = {}, spec["sensitivity"]
    for factor in asked["margin_factors"]:
        out[f"margins x {factor:g}"] = changed = copy.deepcopy(spec)
        for metric in changed["metrics"].values():
            log = metric["scale"] == "log"
            metric["margin"] = metric["margin"] ** factor if log else metric["margin"] * factor
    out[f"dimension by {asked['id_estimator']}"] = changed = copy.deepcopy(spec)
    changed["metrics"]["intrinsic_dimension"]["column"] = asked["id_estimator"]
    return out | {name: copy.deepcopy(spec) | change for name, change in asked["rules"].items()}


def thresholds(spec: Spec, depth: int) -> dict[str, Any]:
    """The numbers the rule uses on a decoder of ``depth`` layers, for the record."""
    names = ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share")
    return {
        **{name: spec[name] for name in ("early", "text", "first_state")},
        "early_layer": early_layer(spec, depth),
        **{f"margin_{m['column']}": m["margin"] for m in spec["metrics"].values()},
        **{name: spec["common"][name] for name in names},
    }


def _pattern(parts: Parts, contrasts: pd.DataFrame) -> dict[str, str] | None:
    """A verdict where the pattern is not fully there; None where it is."""
    told = "; ".join(f"{name.replace('_', ' ')}: {part.label}" for name, part in parts.items())
    fewest = sum(part.shows is True for part in parts.values())
    most = fewest + sum(part.shows is None for part in parts.values())
    if fewest == len(parts):
        return None
    if max(fewest, 1) != max(most, 1):  # the open ones could move the verdict
        why = f"intervals too wide to tell whether text changes more than image tokens ({told})"
        return said("inconclusive", why)
    if fewest < len(parts) - 1:
        why = f"{fewest} of {len(parts)} measures show text changing more and later ({told})"
        return said("not supported", why)
    there = [name for name, part in parts.items() if part.shows]
    same = [
        row["control"]
        for row in contrasts.to_dict("records")
        if all(row.get(name.replace("_", " ")) == MORE for name in there)
    ]
    tail = f"; a control shows these as well ({same[0]})" if same else ""
    return said("weaker", f"only {fewest} measures show text changing more ({told}){tail}")


def _attribution(
    check: pd.DataFrame, placed: Parts | None, contrasts: pd.DataFrame
) -> dict[str, str]:
    """Text changes more and later: do its states move, is it position, is it learnt?"""
    there = "text changes more and later, but"
    if check["label"].eq("no more").any():
        return said("weaker", f"{there} its states themselves move no more than image tokens")
    for name in contrasts.loc[contrasts["shows it"] == "yes", "control"]:
        return said("weaker", f"{there} a control shows it too ({name})")
    if placed is not None and any(part.high <= 0 for part in placed.values()):
        return said("weaker", f"{there} text in the image's places does not: position explains it")
    if placed is None:
        return said("inconclusive", f"{there} text in the image's places was not measured")
    names = set(contrasts["control"])
    if SHUFFLED not in names or names == {SHUFFLED}:
        what = "untrained control" if SHUFFLED in names else "control with shuffled labels"
        return said("inconclusive", f"{there} no {what} was given to compare with")
    for row in contrasts[contrasts["shows it"] != "no"].to_dict("records"):
        why = f"{there} whether a control shows it is unclear ({aside(row)})"
        return said("inconclusive", why)
    if check["label"].eq(UNCLEAR).any():
        return said("inconclusive", f"{there} whether its states move more is unclear")
    if not all(part.low > 0 for part in placed.values()):
        why = "text in the image's places does not beyond doubt: position may explain it"
        return said("weaker", f"{there} {why}")
    for row in contrasts[~(contrasts["lo"] > 0)].itertuples():
        return said("weaker", f"{there} {no_more(row.hi)} than in a control ({row.control})")
    return said(
        "supported",
        "all three measures change more and later in text than in image tokens, in the image's own "
        "places too, and no control shows it",
    )


def _contrasts(
    spec: Spec, parts: Parts, rivals: dict[str, Parts | None], notes: dict[str, str]
) -> pd.DataFrame:
    """One row per control: does it show the pattern, and how much less of it."""
    level, (effect, draws), rows = spec["common"]["level"], least(parts), []
    columns = ["control", "shows it", "effect", "contrast", "lo", "hi"]
    for name, other in rivals.items():
        row: dict[str, Any] = dict.fromkeys(columns, NAN)
        row |= {"control": name, "shows it": "not measured"}
        if other is not None:
            own, own_draws = least(other)
            row["effect"], _ = mirrored(own, own_draws, level)
            contrast = mirrored(effect - own, draws - own_draws, level)
            row["contrast"], (row["lo"], row["hi"]) = contrast
            states = [part.shows for part in other.values()]
            row["shows it"] = "no" if False in states else "unclear" if None in states else "yes"
            row |= {key.replace("_", " "): part.label for key, part in other.items()}
        elif notes.get(name):
            row["note"] = notes[name]
        rows.append(row)
    return pd.DataFrame(rows, columns=columns if not rows else None)


def _details(spec: Spec, parts: Parts, placed: Parts | None) -> pd.DataFrame:
    """One row per measure, for the reader; ``in place``: text in the image's places."""
    return pd.DataFrame(
        [
            {
                "measure": spec["metrics"][name]["label"],
                "metric": spec["metrics"][name]["column"],
                "label": part.label,
                "text": part.text,
                "image": part.image,
                "difference": part.text - part.image,
                "lo": part.low,
                "hi": part.high,
                "margin": part.margin,
                "z* text": part.z_text,
                "z* image": part.z_image,
                "in place": placed[name].text if placed else NAN,
            }
            for name, part in parts.items()
        ]
    )


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
