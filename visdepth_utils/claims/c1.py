"""C1, image tokens stabilise early: the rule behind the entry in data/claims.yaml.

The questions come in this order: can it be measured, is the pattern there, does the representation
itself slow down, and is it more than an untrained model of the same architecture shows.
"""

import copy
import itertools
import math
from fractions import Fraction
from typing import Any

import pandas as pd

from visdepth_utils.claims.bootstrap import aside, no_more, noted, require, said
from visdepth_utils.claims.once import once, only, values_of
from visdepth_utils.claims.stabilisation import (
    EARLY,
    FLAT,
    TINY,
    UNCLEAR,
    Part,
    by_image,
    image_layer_matrix,
    interval,
    made_early,
    mirrored,
    settling,
    too_small,
    weakest,
)

Spec = dict[str, Any]
Curves = dict[str, pd.DataFrame]  # measure -> (images x layers)
COLUMNS = {"image", "modality", "layer", "metric", "value"}
NAN = float("nan")


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C1.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``layer_geometry`` of the trained model.
        controls: Name -> ``layer_geometry`` of an untrained control on the same images.

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If a table lacks a column or metric, or a control has other images or layers.
    """
    common = spec["common"]
    curves, asked, note = curves_of(spec, table, least_update=spec["least_update"])
    depth, n = depth_of(table), len(next(iter(curves.values())))
    found: dict[str, Any] = {
        "effect": NAN,
        "ci": (NAN, NAN),
        "control_effect": NAN,
        "thresholds": thresholds(spec, depth),
        "n_images": n,
    }
    if asked == 0 or n < (1 - common["max_missing_share"]) * asked:
        why = f" ({note})" if note else ""
        return found | said("not testable", f"{asked - n} of {asked} images have no value{why}")
    if depth < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {least}")

    trained = parts_of(spec, curves, depth)
    effect, ci = made_early(trained, common["level"])
    details = _details(spec, curves, trained, depth)
    rivals = {name: _control(spec, name, t, curves, depth) for name, t in controls.items()}
    notes = {name: noted(controls[name]) for name, parts in rivals.items() if parts is None}
    contrasts = _contrasts(spec, trained, rivals, notes)
    found |= {"effect": effect, "ci": ci, "details": details, "controls": contrasts}
    if len(contrasts):
        found["control_effect"] = float(contrasts["effect"].max())
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if answer := _pattern(trained, rivals, _last(details)):
        return found | answer
    check = _representation(spec, table, curves, max(part.layer for part in trained.values()))
    found["details"] = pd.concat([details, check], ignore_index=True)
    return found | _attribution(check, contrasts, _last(details))


def variants(spec: Spec) -> dict[str, Spec]:
    """The same claim under the other settings that its ``sensitivity`` names.

    Args:
        spec: Entry of claims.yaml.

    Returns:
        Name of the variant -> changed entry.
    """
    out = {}
    for factor in spec["sensitivity"]["margin_factors"]:
        changed = copy.deepcopy(spec)
        for metric in changed["metrics"].values():
            log = metric["scale"] == "log"
            metric["margin"] = metric["margin"] ** factor if log else metric["margin"] * factor
        out[f"margins x {factor:g}"] = changed
    changed = copy.deepcopy(spec)
    changed["metrics"]["intrinsic_dimension"]["column"] = spec["sensitivity"]["id_estimator"]
    out[f"dimension by {spec['sensitivity']['id_estimator']}"] = changed
    return out


def thresholds(spec: Spec, depth: int) -> dict[str, Any]:
    """The numbers the rule uses on a decoder of ``depth`` layers, for the record."""
    margins = {f"margin_{m['column']}": m["margin"] for m in spec["metrics"].values()}
    names = ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share")
    own = ("z_star_max", "relative_share", "drop_last", "least_update", "least_layers")
    return {
        **{name: spec[name] for name in own},
        "early_layer": early_layer(spec, depth),
        **margins,
        **{name: spec["common"][name] for name in names},
    }


def _pattern(
    parts: dict[str, Part], rivals: dict[str, dict[str, Part] | None], last: str
) -> dict[str, str] | None:
    """A verdict where the pattern is not fully there; None where it is."""
    there = [name for name, part in parts.items() if part.label == EARLY]
    told = "; ".join(f"{name.replace('_', ' ')}: {part.label}" for name, part in parts.items())
    told += last
    if len(there) == len(parts):
        return None
    answers = [
        (1,) if p.label == EARLY else (0,) if p.label in (FLAT, TINY) else (-1,)
        for p in parts.values()
        if p.label != UNCLEAR
    ]
    open_ones = [(-1, 0, 1)] * (len(parts) - len(answers))
    possible = {_counted(signs) for signs in itertools.product(*answers, *open_ones)}
    if len(possible) > 1:
        return said("inconclusive", f"intervals too wide to place the layer it settles at ({told})")
    if possible == {"not supported"}:
        reason = f"{len(there)} of {len(parts)} measures change early and settle ({told})"
        return said("not supported", reason)
    if not there:
        return said("weaker", f"nothing changes late, but nothing changes early either ({told})")
    same = [name for name, own in rivals.items() if own and all(own[key].shows for key in there)]
    tail = f"; an untrained model shows these as well ({same[0]})" if same else ""
    return said("weaker", f"only {len(there)} measures change early and settle ({told}){tail}")


def _counted(signs: tuple[int, ...]) -> str:
    """What measures amount to: 1 changes early and settles, -1 it does not, 0 it never moves."""
    early, against = signs.count(1), signs.count(-1)
    if early == len(signs):
        return "there"
    return "not supported" if against > 1 or (against and not early) else "weaker"


def _last(details: pd.DataFrame) -> str:
    """Which measures read otherwise with the last states in, as part of a sentence."""
    other = details[details["label"] != details["with the last states"]]
    named = [f"{row['measure']} {row['with the last states']}" for _, row in other.iterrows()]
    return f"; with the last states in: {', '.join(named)}" if named else ""


def _representation(spec: Spec, table: pd.DataFrame, curves: Curves, layer: int) -> pd.DataFrame:
    """Is the representation itself slower after l* than before? Before minus after, by image."""
    common, rows = spec["common"], only(table, modality=spec["modality"])
    images = next(iter(curves.values())).index
    out = []
    for column in spec["representation_check"]["columns"]:
        curve = without_last(spec, by_layer(rows, column).reindex(images))
        speed = 1 - curve if column.startswith("cka") else curve
        before, after = speed.loc[:, speed.columns < layer], speed.loc[:, speed.columns >= layer]
        change = (before.mean(axis=1) - after.mean(axis=1)).to_frame()
        slower: bool | None = None
        estimate = lo = hi = NAN
        if change.notna().all(axis=None):
            mean, draws = by_image(change, common["resamples"], common["seed"])
            estimate, (lo, hi) = float(mean[0]), interval(draws[:, 0], common["level"])
            slower = True if lo > 0 else False if estimate <= 0 else None
        says = {True: "slower after l*", False: "not slower after l*", None: UNCLEAR}[slower]
        row = {"measure": f"check: {column}", "metric": column, "label": says}
        out.append(row | {"change": estimate, "lo": lo, "hi": hi})
    return pd.DataFrame(out)


def _contrasts(
    spec: Spec,
    trained: dict[str, Part],
    rivals: dict[str, dict[str, Part] | None],
    notes: dict[str, str],
) -> pd.DataFrame:
    """One row per control: does it show the pattern, and how much less of it."""
    level, (effect, draws), rows = spec["common"]["level"], weakest(trained), []
    for name, parts in rivals.items():
        row: dict[str, Any] = {"control": name, "shows it": "not measured"}
        row |= dict.fromkeys(("effect", "contrast", "lo", "hi"), NAN)
        if parts is not None:
            own, own_draws = weakest(parts)
            row["effect"], _ = made_early(parts, level)
            contrast = mirrored(effect - own, draws - own_draws, level)
            row["contrast"], (row["lo"], row["hi"]) = contrast
            states = [part.shows for part in parts.values()]
            row["shows it"] = "no" if False in states else "unclear" if None in states else "yes"
            row |= {key.replace("_", " "): part.label for key, part in parts.items()}
        elif notes.get(name):
            row["note"] = notes[name]
        rows.append(row)
    return pd.DataFrame(rows)


def _control(
    spec: Spec, name: str, table: pd.DataFrame, curves: Curves, depth: int
) -> dict[str, Part] | None:
    """The control on exactly the trained model's images; None where it cannot be measured."""
    other, _, _ = curves_of(spec, table, least_update=spec["least_update"])
    if (own := depth_of(table)) != depth:
        raise ValueError(f"control {name!r} has {own} layers, not {depth}: use one architecture")
    images = next(iter(curves.values())).index
    if lacking := set(images) - values_of(table, "image"):
        raise ValueError(
            f"control {name!r} lacks {len(lacking)} of {len(images)} images: use the same samples"
        )
    if any(not images.isin(curve.index).all() for curve in other.values()):
        return None
    return parts_of(spec, {key: curve.loc[images] for key, curve in other.items()}, depth)


def _attribution(check: pd.DataFrame, contrasts: pd.DataFrame, last: str) -> dict[str, str]:
    """The pattern is there: is it the representation, and is it more than architecture?"""
    there = "the pattern is there, but"
    if check["label"].eq("not slower after l*").any():
        return said("weaker", f"{there} the representation itself does not slow down after it")
    if contrasts.empty:
        return said("inconclusive", f"{there} no untrained control was given to compare with")
    for name in contrasts.loc[contrasts["shows it"] == "yes", "control"]:
        model = "an untrained model of the same architecture"
        return said("weaker", f"{there} {model} shows it too ({name})")
    for row in contrasts[contrasts["shows it"] != "no"].to_dict("records"):
        why = f"{there} whether the control shows it is unclear ({aside(row)})"
        return said("inconclusive", why)
    if check["label"].eq(UNCLEAR).any():
        return said("inconclusive", f"{there} whether the representation slows down is unclear")
    for row in contrasts[~(contrasts["lo"] > 0)].itertuples():
        why = f"{no_more(row.hi)} than in an untrained model ({row.control})"
        return said("weaker", f"{there} {why}")
    why = "all three measures change early and settle, and no untrained control does so"
    return said("supported", why + last)


_ANSWER = {True: "yes", False: "no", None: UNCLEAR}


def _details(spec: Spec, curves: Curves, parts: dict[str, Part], depth: int) -> pd.DataFrame:
    """One row per measure, for the reader; both margins, and with the last states, side by side."""
    whole = parts_of(spec | {"drop_last": 0}, curves, depth) if spec["drop_last"] else parts
    return pd.DataFrame(
        [
            {
                "measure": spec["metrics"][name]["label"],
                "metric": spec["metrics"][name]["column"],
                "label": part.label,
                "with the last states": whole[name].label,
                "within margin": _ANSWER[part.within_margin],
                "within share": _ANSWER[part.within_share],
                "l*": part.layer,
                "z*": part.layer / (depth - 1),
                "margin": part.margin,
                "change": part.change,
                "left": part.left,
                "lo": part.left_lo,
                "hi": part.left_hi,
                "early share": part.made,
                "left out": ", ".join(str(x) for x in _gaps(curves[name])),
            }
            for name, part in parts.items()
        ]
    )


def early_layer(spec: Spec, depth: int) -> int:
    """Last layer l with l / (L - 1) within ``z_star_max``."""
    return int(Fraction(spec["z_star_max"]) * (depth - 1))


@once
def depth_of(table: pd.DataFrame) -> int:
    """Decoder layers L: entropy is measured at states 0..L."""
    return int(table.loc[table["metric"] == "entropy", "layer"].max())


def curves_of(
    spec: Spec, table: pd.DataFrame, *, least_update: float = 0.0
) -> tuple[Curves, int, str]:
    """Curves of the images that have every value, images asked for, most frequent note.

    Layers whose curvature is that of steps smaller than ``least_update`` are empty columns.
    """
    require(table, COLUMNS, "table", "layer_geometry")
    columns = {name: [m["column"], m["scale"]] for name, m in spec["metrics"].items()}
    return _curves(table, spec["modality"], columns, least_update)


@once
def _curves(
    table: pd.DataFrame, modality: str, columns: dict[str, list[str]], least_update: float
) -> tuple[Curves, int, str]:
    """As ``curves_of``, by name, column and scale of each measure."""
    rows = only(table, modality=modality)
    if rows.empty:
        raise ValueError(f"table has no {modality} tokens: add them to modalities=")
    wide = {name: by_layer(rows, column) for name, (column, _) in columns.items()}
    tiny: list[int] = []
    if least_update:
        size = by_layer(rows, "update_ratio").mean()
        layers = wide["curvature"].columns
        tiny = [x for x in layers if not min(size.get(x - 1, 0), size.get(x, 0)) >= least_update]
        wide["curvature"] = wide["curvature"].copy()
        wide["curvature"][tiny] = NAN
    complete = rows["image"].drop_duplicates()
    for name, curve in wide.items():
        kept = curve.drop(columns=tiny) if name == "curvature" else curve
        complete = complete[complete.isin(kept.index[kept.notna().all(axis=1)])]
    for name, (_, scale) in columns.items():
        kept = wide[name].loc[complete]
        wide[name] = kept.map(math.log) if scale == "log" else kept
    return wide, rows["image"].nunique(), noted(rows)


def _gaps(curve: pd.DataFrame) -> list[int]:
    """Layers at which no image has a value."""
    return [int(layer) for layer in curve.columns[curve.isna().all(axis=0)]]


def by_layer(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric as (images x layers); a missing value of any sample leaves a gap."""
    if metric not in values_of(rows, "metric"):
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
    common, out, early = spec["common"], {}, early_layer(spec, depth)
    for name, metric in spec["metrics"].items():
        asked = without_last(spec, curves[name])
        curve = asked.drop(columns=_gaps(asked))
        late, kept = (int((c.columns >= early).sum()) for c in (asked, curve))
        if kept < spec["least_layers"] * late:
            out[name] = too_small(margin_of(spec, metric, asked), common["resamples"])
            continue
        out[name] = settling(
            curve,
            margin=margin_of(spec, metric, curve),
            relative=spec["relative_share"],
            early=early,
            fall=metric["pattern"] == "compresses",
            level=common["level"],
            resamples=common["resamples"],
            seed=common["seed"],
        )
    return out
