"""Times and bytes at the depth that C8 recommends, and what C8 shows beside its verdict."""

import numpy as np
import pandas as pd

from visdepth_utils.claims.interval import Interval
from visdepth_utils.claims.retention import Spec
from visdepth_utils.claims.savings import Recommendation, median_bounds, ratios_by_repetition

NAN = float("nan")
State = tuple[str, Interval, Interval | None]
"""Whether a task counts, its gain by the picture, the share of it that another picture brings."""


def ratios_of(spec: Spec, times: pd.DataFrame | None, depths: list[int]) -> pd.DataFrame | None:
    """Ratios at the registered count of image tokens; None where they do not cover the depths."""
    if times is None:
        return None
    own = ratios_by_repetition(times)
    own = own[own["image_tokens"] == spec["image_tokens"]]
    return own if set(depths) <= set(own["depth"]) else None


def prefill_of(times: pd.DataFrame, depth: int, again: bool = False) -> np.ndarray:
    """Prefill ratios of one depth, (repetitions,)."""
    rows = times[(times["depth"] == depth) & (times["again"] == again)]
    return rows.sort_values("repetition")["prefill_ratio"].to_numpy()


def bounds_of(spec: Spec, times: pd.DataFrame) -> dict[int, tuple[float, float]]:
    """Depth below the last -> one-sided bounds of the median prefill ratio."""
    level, last = spec["common"]["level"], int(times["depth"].max())
    return {depth: median_bounds(prefill_of(times, depth), level) for depth in range(last)}


def controls_of(
    spec: Spec,
    states: dict[str, State],
    times: pd.DataFrame | None,
) -> pd.DataFrame:
    """Another picture per task, and the whole model against itself."""
    most, rows = spec["margins"]["other_share"]["value"], []
    for task, (_, _, other) in states.items():
        if other is not None:
            shows = {True: "no", False: "yes", None: "unclear"}[other.below(most)]
            row = {"control": f"another picture ({task}), share of the gain", "shows it": shows}
            rows.append(row | {"effect": other.value, "lo": other.lo, "hi": other.hi})
    if times is not None:
        saved = 1 - prefill_of(times, int(times["depth"].max()), again=True)
        shows = "no" if abs(np.median(saved)) < spec["margins"]["no_cut"]["value"] else "yes"
        row = {"control": "no cut, time saved (range)", "shows it": shows}
        rows.append(row | {"effect": np.median(saved), "lo": saved.min(), "hi": saved.max()})
    return pd.DataFrame(rows)


def details_of(
    spec: Spec,
    states: dict[str, State],
    advice: Recommendation | None,
    times: pd.DataFrame | None,
) -> pd.DataFrame:
    """One row per part of the claim, for the reader."""
    margins, rows = spec["margins"], []
    for task, (label, gain, _) in states.items():
        rows.append(gain.row(f"{task}: gain by the picture", label, margins["gain"]["value"]))
    if advice is None:
        return pd.DataFrame(rows)
    depth = Interval(advice.depth, advice.lo, advice.hi, NAN, NAN)
    rows.append(depth.row("recommended depth", "all tasks that count"))
    for row in advice.losses[advice.losses["depth"] == advice.depth].itertuples():
        loss = Interval(row.loss, row.low, row.high, row.low, row.high)
        rows.append(loss.row(f"{row.task}: loss there", "90% interval", margins["loss"]["value"]))
    if times is None:
        return pd.DataFrame(rows)
    bounds, most = bounds_of(spec, times), margins["time_ratio"]["value"]
    pays = max((d for d, (low, _) in bounds.items() if low <= most), default=NAN)
    rows.append(
        Interval(pays, *[NAN] * 4).row("deepest cut that may save enough", "reported only", most)
    )
    if advice.depth in bounds:
        median = float(np.median(prefill_of(times, advice.depth)))
        own = Interval(median, *bounds[advice.depth], NAN, NAN)
        rows.append(own.row("prefill: median ratio there", "bounds of the median", most))
    for name, margin in (("prefill", "time_ratio"), ("decode", None), ("kv", "kv_ratio")):
        own = times[(times["depth"] == advice.depth) & ~times["again"]][f"{name}_ratio"]
        bounded = Interval(float(own.median()), float(own.min()), float(own.max()), NAN, NAN)
        value = margins[margin]["value"] if margin else NAN
        rows.append(bounded.row(f"{name}: ratio there", "range of repetitions", value))
    return pd.DataFrame(rows)
