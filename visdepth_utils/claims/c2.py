"""C2, text tokens keep restructuring: the rule behind the entry in data/claims.yaml.

The questions come in this order: can it be measured, does text still change when image tokens
should have settled and more than they do, do the states themselves move more, is that more than
position explains, and more than untrained models and shuffled labels show.
"""

import copy
from typing import Any

import pandas as pd

from visdepth_utils.claims.compared import (
    NAN,
    SHUFFLED,
    Parts,
    Spec,
    complete,
    curves_of,
    depth_of,
    movement,
    parts_of,
    placed_text,
    rivals_of,
    why_missing,
)
from visdepth_utils.claims.interchange import early_layer
from visdepth_utils.claims.interval import aside, no_more, noted, require, said
from visdepth_utils.claims.late import MORE, UNCLEAR, least, mirrored

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
