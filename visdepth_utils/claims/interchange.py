"""Tables of substituted states as matrices by image: cells, pairs and averages for C3."""

from fractions import Fraction
from typing import Any

import pandas as pd

from visdepth_utils.claims.bootstrap import by_image_and
from visdepth_utils.claims.once import once, only

Spec = dict[str, Any]
Pairs = list[tuple[int, int]]  # (source_layer, layer)
SAME_NOISE, FAR_NOISE = "noise of the same size", "noise as far as another image"
RIVALS = {
    "text states": ("text", ""),
    SAME_NOISE: ("image", "noise"),
    FAR_NOISE: ("image", FAR_NOISE),
}
"""Control -> (modality, control) of its rows; the last has one row per layer, no pairs."""


def early_layer(spec: Spec, depth: int) -> int:
    """First layer that counts as stabilised: the last l with l / (L - 1) within ``early``."""
    return int(Fraction(spec["early"]) * (depth - 1))


def layer_of_most_harm(table: pd.DataFrame, first: int) -> int:
    """The layer, from layer ``first`` on, with the lowest mean score under another image's states.

    Args:
        table: Of ``substitution_grid``.
        first: First layer that counts, as source and as receiver.

    Returns:
        The layer; the first of several.
    """
    late = table[["source_layer", "layer"]].min(axis=1) >= first
    harm = table[late & (table["control"] == "other image")].groupby("layer")["correct"].mean()
    return int(harm.idxmin())


@once
def rows_of(table: pd.DataFrame, modality: str, control: str, rescaled: bool) -> pd.DataFrame:
    """Rows of one kind; plain rows and controls have no scaled form and always count."""
    rows = only(table, modality=modality, control=control)
    if "rescaled" in rows and control == "":
        rows = rows[(rows["source_layer"] == rows["layer"]) | (rows["rescaled"] == rescaled)]
    return rows


@once
def matrices(table: pd.DataFrame, rescaled: bool) -> dict[str, pd.DataFrame]:
    """Everything as (images x pairs) or, for plain rows and another picture, (images x layers)."""
    own = rows_of(table, "image", "", rescaled)
    apart = own["source_layer"] != own["layer"]
    other = rows_of(table, "image", "other image", rescaled)
    for rows, name in (
        (own[~apart], "source_layer = layer and no control"),
        (other, "'other image'"),
    ):
        if rows.empty:
            raise ValueError(f"table has no rows with {name}: measure with all controls")
    kinds = {"image": own[apart]}
    for name, (modality, control) in RIVALS.items():
        rows = rows_of(table, modality, control, rescaled)
        kinds[name] = rows[(rows["source_layer"] != rows["layer"]) | (name == FAR_NOISE)]
    out = {}
    for value in ("kl", "correct"):
        out[f"plain {value}"] = by_image_and(own[~apart], ["layer"], value)
        out[f"other {value}"] = by_image_and(other, ["layer"], value)
        for name, rows in kinds.items():
            if not rows.empty:
                columns = ["layer"] if name == FAR_NOISE else ["source_layer", "layer"]
                out[f"{name} {value}"] = by_image_and(rows, columns, value)
    return out


def complete(cells: dict[str, pd.DataFrame]) -> pd.Index:
    """Images with every value that the claim itself needs."""
    images = cells["image kl"].index
    for name, frame in cells.items():
        if name.split()[0] in ("image", "plain", "other"):
            images = images[images.isin(frame.index[frame.notna().all(axis=1)])]
    return images


def pairs_of(spec: Spec, wide: pd.DataFrame, depth: int) -> Pairs:
    """Pairs with both layers stabilised, in the direction that the entry names."""
    early, both = early_layer(spec, depth), spec["source_layers"] == "both"
    pairs = [(a, b) for a, b in wide.columns if min(a, b) >= early and (both or a < b)]
    if not pairs:
        raise ValueError(f"table has no pair of layers from {early} on: measure with a low stride")
    return pairs


def gap_parts(spec: Spec, pairs: Pairs) -> dict[str, Pairs]:
    """All pairs, those at large gaps and those at small ones as ``gaps`` has it; none is empty."""
    gaps = [abs(a - b) for a, b in pairs]
    large, small = (Fraction(spec["gaps"][key]) for key in ("large_above", "small_up_to"))
    most = max(small * max(gaps), min(gaps))
    return {
        "all": pairs,
        "large gaps": [p for p, gap in zip(pairs, gaps, strict=True) if gap > large * max(gaps)],
        "small gaps": [p for p, gap in zip(pairs, gaps, strict=True) if gap <= most],
    }


def gap_slope(kl: pd.DataFrame) -> pd.Series | None:
    """Least-squares rise of an image's divergence per layer of gap, among the pairs of a receiver.

    Args:
        kl: (images x pairs).

    Returns:
        By image; None where no receiver has two gaps.
    """
    gaps = pd.Series([float(abs(a - b)) for a, b in kl.columns], kl.columns)
    apart = gaps - gaps.groupby(level="layer").transform("mean")
    return kl @ apart / (apart**2).sum() if apart.any() else None


def per_image(
    spec: Spec, cells: dict[str, pd.DataFrame], everywhere: Pairs, pairs: Pairs
) -> pd.DataFrame:
    """Losses, divergences and their slopes of every image, averaged over pairs."""
    plain = cells["plain correct"].mean(axis=1)
    out = {"plain": plain, "other first": plain - cells["other correct"].iloc[:, 0]}
    out["unread too"] = plain - cells["image correct"][everywhere].mean(axis=1)
    layers = [b for _, b in pairs]
    for name, part in gap_parts(spec, pairs).items() if pairs else ():
        out[f"{name} loss"] = plain - cells["image correct"][part].mean(axis=1)
        out[f"{name} kl"] = cells["image kl"][part].mean(axis=1)
        out[f"{name} other"] = cells["other kl"][[b for _, b in part]].mean(axis=1)
    if pairs:
        out["other"] = plain - cells["other correct"][layers].mean(axis=1)
    for name in RIVALS if pairs else ():
        at = layers if name == FAR_NOISE else pairs
        if f"{name} kl" in cells and set(at) <= set(cells[f"{name} kl"].columns):
            kl, correct = cells[f"{name} kl"][at], cells[f"{name} correct"][at]
            if kl.notna().all(axis=None) and correct.notna().all(axis=None):
                out[f"{name} loss"] = plain - correct.mean(axis=1)
                out[f"{name} kl"] = kl.mean(axis=1)
    if "text states kl" in out:
        slopes = {k: gap_slope(cells[f"{k} kl"][pairs]) for k in ("image", "text states")}
        out |= {f"{name} slope": slope for name, slope in slopes.items() if slope is not None}
    return pd.DataFrame(out)
