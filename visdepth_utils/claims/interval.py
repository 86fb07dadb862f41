"""Numbers with their bounds by image, and whether they lie beyond doubt on one side of a margin."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from visdepth_utils.claims.bootstrap import cluster_bootstrap

Floats = NDArray[np.float64]


def noted(rows: pd.DataFrame) -> str:
    """What is most often noted where a value is missing.

    Args:
        rows: Columns ``value`` and, if there are notes, ``note``.

    Returns:
        The note, empty if there is none.
    """
    notes = rows.loc[rows["value"].isna(), "note"] if "note" in rows else pd.Series(dtype=str)
    notes = notes.replace("", None).dropna()
    return "" if notes.empty else str(notes.mode().iloc[0])


def aside(row: dict[str, Any]) -> str:
    """A control in the words of a reason: its name, and why it was not measured.

    Args:
        row: Of ``Verdict.controls``.

    Returns:
        Name, or name and note.
    """
    note = row.get("note")
    return f"{row['control']}: {note}" if isinstance(note, str) and note else str(row["control"])


@dataclass(frozen=True)
class Interval:
    """An estimate, its two-sided interval, and its one-sided bounds.

    Attributes:
        value: Estimate.
        lo: Lower end of the two-sided interval.
        hi: Its upper end.
        low: One-sided lower bound, held against margins.
        high: One-sided upper bound.
    """

    value: float
    lo: float
    hi: float
    low: float
    high: float

    def below(self, margin: float) -> bool | None:
        """Whether it lies below the margin; None where the bounds do not decide."""
        return True if self.high < margin else False if self.low >= margin else None

    def above(self, margin: float) -> bool | None:
        """Whether it lies above the margin; None where the bounds do not decide."""
        return True if self.low > margin else False if self.high <= margin else None

    def row(self, measure: str, label: str = "", margin: float = float("nan")) -> dict[str, Any]:
        """A line of ``Verdict.details``."""
        numbers = {"estimate": self.value, "lo": self.lo, "hi": self.hi, "margin": margin}
        return {"measure": measure, "label": label} | numbers


def no_more(high: float, more: str = "more", less: str = "less") -> str:
    """What is said of a difference that does not lie above 0 beyond doubt.

    Args:
        high: Upper end of its interval.
        more: The comparative that was asked for.
        less: Its opposite.

    Returns:
        The opposite where the interval lies below 0, else "not beyond doubt" and the comparative.
    """
    return less if high < 0 else f"not beyond doubt {more}"


def beside(value: float, margin: float, digits: int = 2) -> str:
    """A number in as few decimals as show on which side of a margin it lies.

    Args:
        value: The number.
        margin: What it is held against.
        digits: Decimals at least.

    Returns:
        The number with up to three decimals more.
    """
    texts = [f"{value:.{more}f}" for more in range(digits, digits + 4)]
    told = [text for text in texts if np.sign(float(text) - margin) == np.sign(value - margin)]
    return (told or texts)[0]


def as_much(control: Interval, contrast: Interval) -> str:
    """Whether a control shows an effect as much as the model does.

    Args:
        control: The control's effect.
        contrast: The model's effect minus it.

    Returns:
        ``"no"`` where the control has none, or less than the model beyond doubt; ``"yes"`` where it
        has one beyond doubt; else ``"unclear"``.
    """
    if contrast.lo > 0 or control.hi <= 0:
        return "no"
    return "yes" if control.lo > 0 else "unclear"


@dataclass(frozen=True)
class Resampled:
    """Means over images of several columns, and the same in every resample of the images.

    Attributes:
        means: Column -> mean.
        draws: Column -> (B,), all columns under the same resamples.
        level: Of the bounds.
    """

    means: dict[str, float]
    draws: dict[str, Floats]
    level: float

    @classmethod
    def of(cls, per_image: pd.DataFrame, common: dict[str, Any]) -> "Resampled":
        """Resample the rows of a table (images x columns); gaps are left out column by column."""
        found = cluster_bootstrap(
            per_image.to_numpy(float),
            per_image.index,
            B=common["resamples"],
            seed=common["seed"],
        )
        names = list(per_image.columns)
        # numpy numbers: 0 / 0 is NaN for them as for the draws, not an error
        means = {name: np.float64(found.estimate[i]) for i, name in enumerate(names)}
        draws = {name: found.distribution[:, i] for i, name in enumerate(names)}
        return cls(means, draws, common["level"])

    def bounded(self, function: Callable[[dict[str, Any]], Any]) -> Interval:
        """Bounds of a function of the means; it gets a dictionary of numbers or of (B,) arrays."""
        with np.errstate(invalid="ignore", divide="ignore"):
            value, draws = float(function(self.means)), np.asarray(function(self.draws), float)
        tails = [(1 - self.level) / 2, (1 + self.level) / 2, 1 - self.level, self.level]
        if not np.isfinite(draws).all():  # a resample without an answer: no bound is honest
            return Interval(value, *[float("nan")] * 4)
        return Interval(value, *(float(q) for q in np.quantile(draws, tails)))


def by_image_and(rows: pd.DataFrame, columns: list[str], value: str) -> pd.DataFrame:
    """Mean of ``value`` as (images x columns); a missing value of any row leaves a gap.

    Args:
        rows: Tidy table with ``image``, the columns and the value.
        columns: What becomes the columns, e.g. ``["source_layer", "layer"]``.
        value: Which numbers.

    Returns:
        The matrix, images in order of appearance.
    """
    cells = rows.assign(**{value: rows[value].astype(float)}).groupby(
        ["image", *columns], sort=False
    )[value]
    means = cells.mean().where(cells.count() == cells.size())
    return means.unstack(columns).reindex(rows["image"].unique()).sort_index(axis=1)


def require(table: pd.DataFrame, columns: set[str], name: str, source: str) -> None:
    """Refuse a table that lacks a column, by name."""
    if missing := columns - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(f"{name} lacks column(s) {names}: pass what {source} returns")


def rule_variants(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same claim under the other settings that ``sensitivity.rules`` names.

    Args:
        spec: Entry of claims.yaml.

    Returns:
        Name of the variant -> changed entry.
    """
    return {
        name: copy.deepcopy(spec) | change for name, change in spec["sensitivity"]["rules"].items()
    }


def rule_thresholds(spec: dict[str, Any], depth: int, *own: str) -> dict[str, Any]:
    """The numbers a rule uses on a decoder of ``depth`` layers, for the record.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        depth: L.
        *own: Settings of this claim.

    Returns:
        Those settings, the layers, all margins and the common settings.
    """
    names = ("level", "resamples", "seed", "min_images", "min_layers", "max_missing_share")
    return {
        **{name: spec[name] for name in own},
        "layers": depth,
        **{f"margin_{name}": margin["value"] for name, margin in spec["margins"].items()},
        **{name: spec["common"][name] for name in names},
    }


def said(verdict: str, reason: str) -> dict[str, str]:
    """The two fields that end a rule."""
    return {"verdict": verdict, "reason": reason}
