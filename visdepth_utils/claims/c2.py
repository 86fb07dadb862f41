"""C2, text tokens keep restructuring: the rule behind the entry in data/claims.yaml.

The questions come in this order: can it be measured, do text states still move when image tokens
should have settled and more than they do, is that more than position explains, and more than
untrained models and shuffled labels show. How a cloud of states is shaped (three measures of C1)
stands beside it.
"""

import copy
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from visdepth_utils.claims.bootstrap import aside, no_more, noted, require, said
from visdepth_utils.claims.c1 import by_layer, depth_of, margin_of, without_last
from visdepth_utils.claims.interchange import early_layer
from visdepth_utils.claims.once import once, only, values_of
from visdepth_utils.claims.stabilisation import (
    UNCLEAR,
    Compared,
    Late,
    by_image,
    interval,
    late,
    mirrored,
)

Spec = dict[str, Any]
Curves = dict[str, pd.DataFrame]  # measure -> (images x layers)
Shapes = dict[str, Late]
NAN = float("nan")
IN_PLACE = "text in the image's places"
SHUFFLED = "shuffled labels"
COLUMNS = {"image", "modality", "layer", "metric", "value"}
MOVES, MOVES_NOT = "text moves more", "text moves no more"


@dataclass(frozen=True, kw_only=True)
class Move(Compared):
    """How far states move from one third on, mean over layers.

    Attributes:
        lo: Two-sided interval of text - image, lower end.
        hi: Upper end.
    """

    lo: float
    hi: float


Parts = dict[str, Move] | dict[str, Late]


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
    if spec["text"] not in values_of(table, "modality"):
        return found | said("not testable", f"table has no tokens of group {spec['text']!r}")
    if "image" not in values_of(table, "modality"):
        raise ValueError("table has no 'image' tokens: pass what text_geometry returns")
    shapes, beside = shapes_of(spec, table, spec["text"], depth)
    images = leading(spec, table, spec["text"], depth)
    found["n_images"] = len(images)
    if len(images) == 0 or len(images) < (1 - common["max_missing_share"]) * asked:
        why = why_missing(spec, table, ("image", spec["text"]))
        return found | said("not testable", f"{asked - len(images)} of {asked} images {why}")
    if depth < common["min_layers"]:
        few = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {few}")

    parts = parts_of(spec, table, spec["text"], images, depth)
    moves = movement(spec, table, spec["text"], images, depth)
    effect, ci = mirrored(*combined(spec, parts), common["level"])
    found |= {"effect": effect, "ci": ci}
    placed = None
    if IN_PLACE in values_of(table, "modality"):
        whole = images.isin(leading(spec, table, IN_PLACE, depth)).all()
        placed = parts_of(spec, table, IN_PLACE, images, depth) if whole else None
    found["details"] = _details(spec, moves, shapes, beside, placed)
    rivals = rivals_of(spec, table, controls, images)
    notes = {name: noted(t) for name, t in controls.items() if rivals[name] is None}
    found["controls"] = contrasts = _contrasts(spec, parts, rivals, notes)
    if len(contrasts):
        found["control_effect"] = float(contrasts["effect"].max())
    if len(images) < common["min_images"]:
        few = common["min_images"]
        return found | said("inconclusive", f"{len(images)} images; the rule asks for {few}")
    answer = _pattern(spec, parts, contrasts) or _attribution(spec, moves, placed, contrasts)
    if spec["decides"] == "movement":
        agree = sum(part.shows is True for part in shapes.values())
        answer["reason"] += f"; {agree} of {len(shapes)} measures of shape change more and later"
    return found | answer


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
        for measure in changed["movement"].values():
            measure["margin"] *= factor
        for metric in changed["metrics"].values():
            log = metric["scale"] == "log"
            metric["margin"] = metric["margin"] ** factor if log else metric["margin"] * factor
    return out | {name: copy.deepcopy(spec) | change for name, change in asked["rules"].items()}


def thresholds(spec: Spec, depth: int) -> dict[str, Any]:
    """The numbers the rule uses on a decoder of ``depth`` layers, for the record."""
    names = ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share")
    own = ("decides", "combine", "early", "text", "first_state", "drop_last", "least_distinct")
    return {
        **{name: spec[name] for name in own},
        "early_layer": early_layer(spec, depth),
        **{f"margin_{column}": m["margin"] for column, m in spec["movement"].items()},
        **{f"margin_{m['column']}": m["margin"] for m in spec["metrics"].values()},
        **{name: spec["common"][name] for name in names},
    }


def _pattern(spec: Spec, parts: Parts, contrasts: pd.DataFrame) -> dict[str, str] | None:
    """A verdict where the pattern is not fully there; None where it is."""
    told = "; ".join(f"{name.replace('_', ' ')}: {part.label}" for name, part in parts.items())
    fewest = sum(part.shows is True for part in parts.values())
    most = fewest + sum(part.shows is None for part in parts.values())
    does = "text moving more" if spec["decides"] == "movement" else "text changing more and later"

    def answer(shown: int) -> str:
        if shown == len(parts):
            return "there"
        return "weaker" if shown and shown == len(parts) - 1 else "not supported"

    if answer(fewest) != answer(most):  # the open ones could move the verdict
        why = f"intervals too wide to tell whether text changes more than image tokens ({told})"
        return said("inconclusive", why)
    if answer(fewest) == "there":
        return None
    if answer(fewest) == "not supported":
        return said("not supported", f"{fewest} of {len(parts)} measures show {does} ({told})")
    there = {name: part.label for name, part in parts.items() if part.shows}
    same = [
        row["control"]
        for row in contrasts.to_dict("records")
        if all(row.get(name.replace("_", " ")) == label for name, label in there.items())
    ]
    tail = f"; a control shows this as well ({same[0]})" if same else ""
    return said("weaker", f"only {fewest} of {len(parts)} measures show {does} ({told}){tail}")


def _attribution(
    spec: Spec, moves: dict[str, Move], placed: Parts | None, contrasts: pd.DataFrame
) -> dict[str, str]:
    """The pattern is there: is it position, is it learnt?"""
    by_shape = spec["decides"] != "movement"
    does = "text changes more and later" if by_shape else "text moves more"
    there = f"{does}, but"
    if by_shape and any(move.effect <= 0 for move in moves.values()):
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
    if by_shape and not all(move.lo > 0 for move in moves.values()):
        return said("inconclusive", f"{there} whether its states move more is unclear")
    if not all(part.low > 0 for part in placed.values()):
        why = "text in the image's places does not beyond doubt: position may explain it"
        return said("weaker", f"{there} {why}")
    for row in contrasts[~(contrasts["lo"] > 0)].itertuples():
        return said("weaker", f"{there} {no_more(row.hi)} than in a control ({row.control})")
    why = f"{does} than image tokens, in the image's own places too, and no control shows it"
    return said("supported", why)


def combined(spec: Spec, parts: Parts) -> tuple[float, NDArray[np.float64]]:
    """Smallest or mean effect over the measures, in the data and in every resample."""
    over = np.min if spec["combine"] == "smallest" else np.mean
    effects = over([part.effects for part in parts.values()], axis=0)
    return float(over([part.effect for part in parts.values()])), effects


def _contrasts(
    spec: Spec, parts: Parts, rivals: dict[str, Parts | None], notes: dict[str, str]
) -> pd.DataFrame:
    """One row per control: does it show the pattern, and how much less of it."""
    level, (effect, draws), rows = spec["common"]["level"], combined(spec, parts), []
    columns = ["control", "shows it", "effect", "contrast", "lo", "hi"]
    for name, other in rivals.items():
        row: dict[str, Any] = dict.fromkeys(columns, NAN)
        row |= {"control": name, "shows it": "not measured"}
        if other is not None:
            own, own_draws = combined(spec, other)
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


def _details(
    spec: Spec,
    moves: dict[str, Move],
    shapes: Shapes,
    beside: dict[str, str],
    placed: Parts | None,
) -> pd.DataFrame:
    """One row per measure, movement first; ``in place``: text in the image's places."""
    rows = []
    for name, move in moves.items():
        row = {"measure": spec["movement"][name]["label"], "metric": name, "label": move.label}
        row |= {"text": move.text, "image": move.image, "difference": move.text - move.image}
        rows.append(row | {"lo": move.lo, "hi": move.hi, "margin": move.margin})
    for name, part in shapes.items():
        metric = spec["metrics"][name]
        row = {"measure": metric["label"], "metric": metric["column"], "label": part.label}
        row |= {"text": part.text, "image": part.image, "difference": part.text - part.image}
        row |= {"lo": part.low, "hi": part.high, "margin": part.margin}
        rows.append(row | {"z* text": part.z_text, "z* image": part.z_image})
    for name, why in beside.items():
        metric = spec["metrics"][name]
        rows.append({"measure": metric["label"], "metric": metric["column"], "label": why})
    at = {spec["metrics"][n]["column"] if n in spec["metrics"] else n: n for n in placed or ()}
    inside = [placed[at[row["metric"]]].text if row["metric"] in at else NAN for row in rows]
    return pd.DataFrame(rows).assign(**{"in place": inside})


def curves_of(spec: Spec, table: pd.DataFrame, modality: str) -> Curves:
    """Every measure of shape of one group of tokens, from the first state that counts."""
    rows = only(table, modality=modality)
    if rows.empty:
        raise ValueError(f"table has no {modality!r} tokens: pass what text_geometry returns")
    return {
        name: _curve(rows, metric["column"], metric["scale"], spec["first_state"])
        for name, metric in spec["metrics"].items()
    }


@once
def _curve(rows: pd.DataFrame, column: str, scale: str, first: int) -> pd.DataFrame:
    """A measure of shape from the first state that counts, (images x layers)."""
    wide = by_layer(rows, column)
    wide = wide.loc[:, wide.columns >= first]
    return wide.map(math.log) if scale == "log" else wide


def complete(curves: list[pd.DataFrame]) -> pd.Index:
    """Images with every value in all of them."""
    images = curves[0].index
    for curve in curves:
        images = images[images.isin(curve.index[curve.notna().all(axis=1)])]
    return images


def why_missing(spec: Spec, table: pd.DataFrame, names: tuple[str, ...]) -> str:
    """What is most often noted where a value that decides is missing."""
    shapes = [metric["column"] for metric in spec["metrics"].values()]
    columns = list(spec["movement"]) if spec["decides"] == "movement" else shapes
    rows = table[table["modality"].isin(names) & table["metric"].isin(columns)]
    lost = rows[rows["value"].isna() & (rows["layer"] > 0)]
    note = noted(lost)
    return "have no value" + (f" ({note})" if note else "")


def speeds(spec: Spec, table: pd.DataFrame, modality: str, depth: int) -> Curves:
    """How far states move from one third on, by measure, (images x layers)."""
    out = {}
    for column in spec["movement"]:
        curve = without_last(spec, by_layer(only(table, modality=modality), column))
        curve = curve.loc[:, curve.columns >= early_layer(spec, depth)]
        out[column] = 1 - curve if column.startswith("cka") else curve
    return out


def leading(spec: Spec, table: pd.DataFrame, text: str, depth: int) -> pd.Index:
    """Images with every value that the verdict needs, for image tokens and this group of text."""
    kinds = ("image", text)
    if spec["decides"] == "movement":
        curves = [c for kind in kinds for c in speeds(spec, table, kind, depth).values()]
    else:
        curves = [c for kind in kinds for c in curves_of(spec, table, kind).values()]
    return complete(curves)


def parts_of(spec: Spec, table: pd.DataFrame, text: str, images: pd.Index, depth: int) -> Parts:
    """What decides: a group of text against image tokens, on these images."""
    if spec["decides"] == "movement":
        return movement(spec, table, text, images, depth)
    words, pixels = (curves_of(spec, table, kind) for kind in (text, "image"))
    return shape(spec, words, pixels, images, depth, list(spec["metrics"]))


def movement(
    spec: Spec, table: pd.DataFrame, text: str, images: pd.Index, depth: int
) -> dict[str, Move]:
    """Do text states move more from one third on, mean over layers? By measure and image."""
    common, out = spec["common"], {}
    words, pixels = (speeds(spec, table, kind, depth) for kind in (text, "image"))
    for column, measure in spec["movement"].items():
        means = [c[column].reindex(images).mean(axis=1, skipna=False) for c in (words, pixels)]
        mean, draws = by_image(
            (means[0] - means[1]).to_frame(), common["resamples"], common["seed"]
        )
        margin, (lo, hi) = measure["margin"], interval(draws[:, 0], common["level"])
        low, high = np.quantile(draws[:, 0], [1 - common["level"], common["level"]])
        shows = True if low > margin else False if high <= margin else None
        out[column] = Move(
            label={True: MOVES, False: MOVES_NOT, None: UNCLEAR}[shows],
            margin=margin,
            text=float(means[0].mean()),
            image=float(means[1].mean()),
            lo=lo,
            hi=hi,
            low=float(low),
            high=float(high),
            shows=shows,
            effect=float(mean[0]) / margin,
            effects=draws[:, 0] / margin,
        )
    return out


def shape(
    spec: Spec, text: Curves, image: Curves, images: pd.Index, depth: int, names: list[str]
) -> Shapes:
    """Measures of shape under the same resamples of images."""
    common, out = spec["common"], {}
    for name in names:
        words, pixels = (without_last(spec, c[name].loc[images]) for c in (text, image))
        out[name] = late(
            words,
            pixels,
            margin=margin_of(spec, spec["metrics"][name], words),
            early=early_layer(spec, depth),
            depth=depth,
            level=common["level"],
            resamples=common["resamples"],
            seed=common["seed"],
        )
    return out


def shapes_of(
    spec: Spec, table: pd.DataFrame, text: str, depth: int
) -> tuple[Shapes, dict[str, str]]:
    """Measures of shape that can be read, and why others cannot."""
    words, pixels = (curves_of(spec, table, kind) for kind in (text, "image"))
    beside, out = {}, {}
    asked = table["image"].nunique()
    for name, metric in spec["metrics"].items():
        images = complete([words[name], pixels[name]])
        if len(images) < max(2, (1 - spec["common"]["max_missing_share"]) * asked):
            beside[name] = "not measured"
        elif metric["column"] == "id_twonn" and distinct(table, text) < spec["least_distinct"]:
            beside[name] = "not read: words repeat"
        else:
            out |= shape(spec, words, pixels, images, depth, [name])
    return out, beside


@once
def distinct(table: pd.DataFrame, text: str) -> float:
    """Share of a draw's tokens that differ at the input, median over samples, by their notes.

    A dimension at state 0 that has no value is noted with "k distinct tokens of n".
    """
    first = table["modality"].eq(text) & table["layer"].eq(0) & table["metric"].eq("id_twonn")
    notes = table.loc[first, "note"] if "note" in table else pd.Series(dtype=str)
    found = [re.search(r"(\d+) distinct tokens of (\d+)", str(note)) for note in notes]
    return float(np.median([int(m[1]) / int(m[2]) if m else 1.0 for m in found] or [1.0]))


@once
def _shuffled(table: pd.DataFrame, text: str) -> pd.DataFrame:
    """The rows under shuffled labels, named as what they stand for."""
    names = {"shuffled image": "image", "shuffled text": text}
    mixed = only(table, modality=list(names))
    return mixed.assign(modality=mixed["modality"].map(names))


def rivals_of(
    spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame], images: pd.Index
) -> dict[str, Parts | None]:
    """Every control on exactly the images of the claim; None where one cannot be measured."""
    mixed, given = _shuffled(table, spec["text"]), dict(controls)
    if len(mixed):
        given[SHUFFLED] = mixed
    depth, out = depth_of(table), {}
    for name, rows in given.items():
        if (own := depth_of(rows)) != depth:
            raise ValueError(f"control {name!r} has {own} layers, not {depth}: use one model")
        if lacking := set(images) - values_of(rows, "image"):
            few = f"{len(lacking)} of {len(images)} images"
            raise ValueError(f"control {name!r} lacks {few}: use the same samples")
        if spec["text"] not in values_of(rows, "modality"):
            out[name] = None
            continue
        whole = images.isin(leading(spec, rows, spec["text"], depth)).all()
        out[name] = parts_of(spec, rows, spec["text"], images, depth) if whole else None
    return out
