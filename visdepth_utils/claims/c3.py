"""C3, image states are interchangeable between layers: the rule behind the entry in claims.yaml.

The questions come in this order: can anything be lost at all, do answers and next-token
distributions survive the states of another layer, at large gaps too, and does a random change as
large as the way to another image do harm there. Why states are interchangeable (they hardly differ,
or they differ and still do), and whether text states do more harm at larger gaps, is told beside
it and decides nothing.
"""

import copy
from typing import Any

import pandas as pd

from visdepth_utils.claims.bootstrap import Interval, Resampled, no_more, require, said
from visdepth_utils.claims.interchange import (
    FAR_NOISE,
    RIVALS,
    SAME_NOISE,
    Pairs,
    Spec,
    complete,
    early_layer,
    gap_parts,
    matrices,
    pairs_of,
    per_image,
    rows_of,
)

Part = tuple[Interval, Interval]  # score lost, interchange index
NAN = float("nan")
COLUMNS = {"image", "modality", "source_layer", "layer", "control", "kl", "correct"}
HARDLY_DIFFER, DIFFER = "the states hardly differ", "they differ and are still exchangeable"
EFFECT_OF_SIZE = {HARDLY_DIFFER: "do as little", DIFFER: "do more harm", "unclear": "leave it open"}
"""Why states are interchangeable -> what random vectors of the same size do."""


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C3.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``substitution_grid`` of image and of text states, one below the other.
        controls: Not used: the controls are rows of the table.

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If the table lacks a column or the rows that a comparison needs.
    """
    common, margins = spec["common"], spec["margins"]
    require(table, COLUMNS, "table", "substitution_grid")
    own = rows_of(table, "image", "", spec["rescaled"])
    if own.empty:
        raise ValueError("table has no image states: add substitution_grid(modality='image')")
    depth = int(own["layer"].max()) + 1
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN}
    found |= {"thresholds": thresholds(spec, depth), "n_images": 0}
    if (own["source_layer"] == own["layer"]).all():
        return found | said("not testable", f"no pairs with rescaled={spec['rescaled']} in table")
    cells = matrices(table, spec["rescaled"])
    asked, images = own["image"].nunique(), complete(cells)
    found["n_images"] = n = len(images)
    if n == 0 or n < (1 - common["max_missing_share"]) * asked:
        return found | said("not testable", f"{asked - n} of {asked} images have no value")
    if depth < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {least}")
    cells = {name: frame.reindex(images) for name, frame in cells.items()}
    residue = float(cells["plain kl"].to_numpy().max())
    if residue > margins["plain_kl"]["value"]:
        why = f"putting back a layer's own states moves the model by {residue:.2g} nats"
        return found | said("not testable", f"{why}: the intervention is not exact")

    everywhere = pairs_of(spec, cells["image kl"], depth)
    moved = cells["other kl"].mean()
    pairs = [(a, b) for a, b in everywhere if moved[b] >= margins["read_kl"]["value"]]
    drawn = Resampled.of(per_image(spec, cells, everywhere, pairs), common)
    able = drawn.bounded(lambda m: m["other first"])
    found["details"] = pd.DataFrame([able.row("score lost with another picture throughout")])
    parts: dict[str, Part] = {}
    if pairs:
        gaps = gap_parts(spec, pairs)
        parts = {name: _part(drawn, name) for name in gaps}
        index = parts["all"][1]
        found |= {"effect": index.value, "ci": (index.lo, index.hi)}
        found["controls"] = rivals = _rivals(margins, drawn)
        why, rises = _why(rivals) if _pattern(parts, margins) is None else "", _rises(drawn)
        rows = [*_details(margins, drawn, able, parts, gaps), *_beside(drawn, rivals, why, rises)]
        found["details"] = pd.DataFrame(rows)
        asked_of = rivals.loc[rivals["control"].isin(spec["must_do_harm"]), "effect"]
        found["control_effect"] = float(asked_of.max())
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if not able.low > 0:
        better = "not beyond doubt better" if able.value > 0 else "no better"
        why = f"the model answers {better} than with another picture, so it has nothing to lose"
        return found | said("not testable", why)
    if not pairs:
        why = "another picture's states change nothing: nobody reads them any more"
        return found | said("not testable", f"from layer {early_layer(spec, depth)} on, {why}")
    if answer := _sensitive(drawn.bounded(lambda m: m["other"]), margins):
        return found | answer
    answer = _pattern(parts, margins) or _read(spec, rivals)
    if answer["verdict"] == "supported":
        size = f"{why}: random vectors of the same size {EFFECT_OF_SIZE[why]}"
        answer["reason"] += f"; {size}; text states: {rises}"
    if answer["verdict"] in ("supported", "weaker") and n < spec["min_images"]:
        points = f"{100 * margins['loss']['value']:g} points"
        why = f"{n} images; a loss of {points} can hide in fewer than {spec['min_images']}"
        return found | said("inconclusive", f"{why} (otherwise: {answer['verdict']})")
    return found | answer


def variants(spec: Spec) -> dict[str, Spec]:
    """The same claim under the other settings that its ``sensitivity`` names.

    Args:
        spec: Entry of claims.yaml.

    Returns:
        Name of the variant -> changed entry.
    """
    out = {}
    for factor in spec["sensitivity"]["margin_factors"]:
        out[f"margins x {factor:g}"] = changed = copy.deepcopy(spec)
        for name in ("loss", "loss_large_gaps"):
            changed["margins"][name]["value"] *= factor
        changed["margins"]["index"]["value"] = 1 - factor * (1 - spec["margins"]["index"]["value"])
    for name, change in spec["sensitivity"]["rules"].items():
        out[name] = copy.deepcopy(spec) | change
    return out


def thresholds(spec: Spec, depth: int) -> dict[str, Any]:
    """The numbers the rule uses on a decoder of ``depth`` layers, for the record."""
    names = ("level", "resamples", "seed", "min_layers", "max_missing_share")
    return {
        "early": spec["early"],
        "early_layer": early_layer(spec, depth),
        "large_gaps_above": spec["gaps"]["large_above"],
        "small_gaps_up_to": spec["gaps"]["small_up_to"],
        "must_do_harm": ", ".join(spec["must_do_harm"]),
        "source_layers": spec["source_layers"],
        "rescaled": spec["rescaled"],
        "min_images": spec["common"]["min_images"],
        "min_images_for_no_loss": spec["min_images"],
        **{f"margin_{name}": margin["value"] for name, margin in spec["margins"].items()},
        **{name: spec["common"][name] for name in names},
    }


def _part(drawn: Resampled, name: str) -> Part:
    """Loss and index over one set of pairs."""
    loss = drawn.bounded(lambda m: m[f"{name} loss"])
    return loss, drawn.bounded(lambda m: 1 - m[f"{name} kl"] / m[f"{name} other"])


def _rivals(margins: Spec, drawn: Resampled) -> pd.DataFrame:
    """One row per control: its index and loss over the same pairs, and how much less it is."""
    rows = []
    for name in RIVALS:
        if f"{name} kl" not in drawn.means:
            continue
        loss = drawn.bounded(lambda m, n=name: m[f"{n} loss"])
        index = drawn.bounded(lambda m, n=name: 1 - m[f"{n} kl"] / m["all other"])
        less = drawn.bounded(lambda m, n=name: (m[f"{n} kl"] - m["all kl"]) / m["all other"])
        tests = (loss.below(margins["loss"]["value"]), index.above(margins["index"]["value"]))
        shows = "no" if False in tests else "unclear" if None in tests else "yes"
        row = {"control": name, "shows it": shows, "effect": index.value}
        row |= {"contrast": less.value, "lo": less.lo, "hi": less.hi, "loss": loss.value}
        rows.append(row)
    columns = ["control", "shows it", "effect", "contrast", "lo", "hi", "loss"]
    return pd.DataFrame(rows, columns=columns)


def _sensitive(other: Interval, margins: Spec) -> dict[str, str] | None:
    """Could these pairs have shown a loss? Another picture's states must cost a lot there."""
    least = margins["other_loss"]["value"]
    if other.low > least:
        return None
    clear = other.value <= least
    why = f"even another picture's states cost only {100 * other.value:.0f} points at these layers"
    unclear = f"it is unclear whether another picture's states cost {100 * least:.0f} points there"
    return said("not testable" if clear else "inconclusive", why if clear else unclear)


def _pattern(parts: dict[str, Part], margins: Spec) -> dict[str, str] | None:
    """A verdict where states are not interchangeable at all gaps; None where they are."""
    most, least = margins["loss"]["value"], margins["index"]["value"]
    tests = {
        "answers are lost": parts["all"][0].below(most),
        "the next token shifts": parts["all"][1].above(least),
        "answers are lost at large gaps": parts["large gaps"][0].below(
            margins["loss_large_gaps"]["value"]
        ),
    }
    small = (parts["small gaps"][0].below(most), parts["small gaps"][1].above(least))
    wrong = [name for name, test in tests.items() if test is False]
    if wrong and all(small):
        return said("weaker", f"interchangeable at small gaps only: {', '.join(wrong)}")
    if wrong and tests["answers are lost"] and tests["the next token shifts"]:
        return said("weaker", f"interchangeable on average, but {', '.join(wrong)}")
    if wrong:
        return said("not supported", f"with the states of another layer {', '.join(wrong)}")
    if None in tests.values():
        open_ones = ", ".join(name for name, test in tests.items() if test is None)
        return said("inconclusive", f"intervals too wide to tell whether {open_ones}")
    return None


def _read(spec: Spec, rivals: pd.DataFrame) -> dict[str, str]:
    """Interchangeable: do the controls that the entry names do harm in the same place?"""
    there = "image states are interchangeable, but"
    shown = rivals.set_index("control")
    for name in spec["must_do_harm"]:
        if name not in shown.index:
            todo = "measure substitution_grid with all controls"
            return said("inconclusive", f"{there} there is no complete control with {name}: {todo}")
    shown = shown.loc[spec["must_do_harm"]]
    for name in shown.index[shown["shows it"] == "yes"]:
        return said("weaker", f"{there} putting {name} in their place costs as little")
    for name in shown.index[shown["shows it"] == "unclear"]:
        open_one = f"whether putting {name} in their place costs as little is unclear"
        return said("inconclusive", f"{there} {open_one}")
    for row in shown[~(shown["lo"] > 0)].itertuples():
        return said("weaker", f"{there} {no_more(row.hi)} than {row.Index}")
    survive = "answers and next-token distributions survive the states of any other layer"
    return said("supported", f"{survive}, at large gaps too")


def _why(rivals: pd.DataFrame) -> str:
    """Why states may be interchangeable; size tells nothing where even the far noise is passed."""
    by_name = rivals.set_index("control").to_dict("index")
    far, same = by_name.get(FAR_NOISE), by_name.get(SAME_NOISE)
    if not far or not same or far["shows it"] != "no":
        return "unclear"
    if same["shows it"] == "yes":
        return HARDLY_DIFFER
    return DIFFER if same["shows it"] == "no" and same["lo"] > 0 else "unclear"


def _rises(drawn: Resampled) -> str:
    """What the harm of text states does as the gap grows, against that of image states."""
    if "text states slope" not in drawn.means:
        return "not measured"
    text = drawn.bounded(lambda m: m["text states slope"])
    more = drawn.bounded(lambda m: m["text states slope"] - m["image slope"])
    verb = "rises" if min(text.lo, more.lo) > 0 else "does not beyond doubt rise"
    return f"harm {verb} with the gap"


def _details(
    margins: Spec,
    drawn: Resampled,
    able: Interval,
    parts: dict[str, Part],
    gaps: dict[str, Pairs],
) -> list[dict[str, Any]]:
    """One row per part of the claim."""
    words = {True: "holds", False: "fails", None: "unclear"}
    rows = [drawn.bounded(lambda m: m["plain"]).row("score, unmodified")]
    rows.append(able.row("score lost with another picture throughout"))
    lost = drawn.bounded(lambda m: m["other"])
    least = margins["other_loss"]["value"]
    rows.append(lost.row("score lost, another picture", words[lost.above(least)], least))
    for name, (loss, index) in parts.items():
        far = [abs(a - b) for a, b in gaps[name]]
        where = f"{name} ({min(far)} to {max(far)} layers)"
        most = margins["loss_large_gaps" if name == "large gaps" else "loss"]["value"]
        rows.append(loss.row(f"score lost, {where}", words[loss.below(most)], most))
        top = margins["index"]["value"]
        rows.append(index.row(f"interchange index, {where}", words[index.above(top)], top))
    unread = drawn.bounded(lambda m: m["unread too"])
    rows.append(unread.row("score lost, layers that nobody reads counted too"))
    return rows


def _beside(drawn: Resampled, rivals: pd.DataFrame, why: str, rises: str) -> list[dict[str, Any]]:
    """Rows that decide nothing: why states are interchangeable, and harm over the gap."""
    rows = []
    for row in rivals[rivals["control"] == SAME_NOISE].to_dict("records"):
        numbers = {"estimate": row["contrast"], "lo": row["lo"], "hi": row["hi"], "margin": 0.0}
        rows.append({"measure": f"index, image states minus {SAME_NOISE}", "label": why} | numbers)
    if "text states slope" in drawn.means:
        unit = "harm per layer of gap (nats)"
        for name in ("image", "text states"):
            slope = drawn.bounded(lambda m, n=name: m[f"{n} slope"])
            rows.append(slope.row(f"{unit}, {name.split()[0]} states"))
        more = drawn.bounded(lambda m: m["text states slope"] - m["image slope"])
        rows.append(more.row(f"{unit}, text minus image", rises, 0.0))
    return rows
