"""C8, image tokens can be dropped at a saving that pays: the rule behind data/claims.yaml.

The questions come in this order: do the tasks use the picture, is there a cut that answers keep,
and does the clock notice it.
"""

import copy
from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.bootstrap import (
    Interval,
    Resampled,
    beside,
    require,
    rule_thresholds,
    rule_variants,
    said,
)
from visdepth_utils.claims.retention import SWEEP, Spec, columns_of, usable
from visdepth_utils.claims.savings import (
    Recommendation,
    median_bounds,
    ratios_by_repetition,
    recommend_depth,
)

State = tuple[str, Interval, Interval | None]
"""Whether a task counts, its gain by the picture, the share of it that another picture brings."""
NAN = float("nan")


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C8.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``truncation_sweep`` of single-token tasks, one below the other.
        controls: ``"times"``: ``time_by_depth`` of the model's own decoder; ``"conditions"``:
            ``evaluate`` without picture and with another one. Without both nothing is "supported".

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If a table lacks a column, or the conditions lack images of the sweep.
    """
    common, margins = spec["common"], {k: m["value"] for k, m in spec["margins"].items()}
    require(table, SWEEP | {spec["score"]}, "table", "truncation_sweep")
    sweep = table[(table["mode"] == spec["mode"]) & table["task"].isin(spec["tasks"])]
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    depth = 0 if sweep.empty else int(sweep["depth"].max())
    settings = ("mode", "score", "tasks", "image_tokens", "min_repetitions", "min_images")
    found["thresholds"] = rule_thresholds(spec, depth, *settings)
    if lacking := [task for task in spec["tasks"] if task not in set(sweep["task"])]:
        return found | said("not testable", f"table has no task {lacking[0]!r} in this mode")
    if depth < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {least}")
    if first := int(sweep["depth"].min()):
        return found | said("not testable", f"depths start at {first}: the rule needs depth 0")
    given = {k: v for k, v in controls.items() if k == "conditions"}
    frames = columns_of(spec, sweep, given, spec["tasks"])
    both = pd.concat([frames[task].add_prefix(f"{task} ") for task in spec["tasks"]], axis=1)
    whole = both.dropna()
    found["n_images"] = n = len(whole)
    if n < 2 or n < (1 - common["max_missing_share"]) * len(both):
        return found | said(
            "not testable", f"{len(both) - n} of {len(both)} images have no value in all tasks"
        )
    drawn = Resampled.of(whole, common)
    states = {task: _state(spec, drawn, task) for task in spec["tasks"]}
    used = [task for task, state in states.items() if not state[0].startswith("skipped")]
    advice = None
    if used:
        options = {"level": common["level"], "resamples": common["resamples"]}
        advice = recommend_depth(
            sweep[sweep["image"].isin(whole.index)],
            used,
            margins["loss"],
            score=spec["score"],
            seed=common["seed"],
            **options,
        )
    times = ratios_of(spec, controls.get("times"), sorted(set(sweep["depth"])))
    if advice is not None and times is not None:
        found |= _saved(advice, times, common)
    found["details"] = details_of(spec, states, advice, times)
    found["controls"] = controls_of(spec, states, times)
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if advice is None:
        why = "; ".join(f"{task} {state[0]}" for task, state in states.items())
        return found | said("not testable", f"the model cannot do it ({why})")
    return found | _answer(spec, margins, states, advice, times, found)


def variants(spec: Spec) -> dict[str, Spec]:
    """The same claim with other tolerances, and under the other rules that the entry names."""
    out = {}
    for factor in spec["sensitivity"]["margin_factors"]:
        changed = copy.deepcopy(spec)
        changed["margins"]["loss"]["value"] *= factor
        out[f"tolerance x {factor:g}"] = changed
    return out | rule_variants(spec)


def _state(spec: Spec, drawn: Resampled, task: str) -> State:
    """As ``usable``, and a gain so large that losing it would be seen."""
    label, gain, other = usable(spec, drawn, task)
    least = spec["margins"]["gain"]["value"]
    if not label.startswith("skipped") and not gain.above(least):
        label = f"skipped: the picture is not beyond doubt worth {100 * least:g} points"
    return label, gain, other


def _saved(advice: Recommendation, times: pd.DataFrame, common: Spec) -> dict[str, Any]:
    """Time saved at the recommended depth; its interval over images and repetitions."""
    rng, values = np.random.default_rng(common["seed"]), []
    by_depth = {d: prefill_of(times, d) for d in set(advice.distribution.tolist()) | {advice.depth}}
    for depth in advice.distribution.tolist():
        ratios = by_depth[depth]
        values.append(1 - np.median(ratios[rng.integers(0, len(ratios), len(ratios))]))
    lo, hi = np.quantile(values, [(1 - common["level"]) / 2, (1 + common["level"]) / 2])
    effect = 1 - float(np.median(by_depth[advice.depth]))
    again = 1 - float(np.median(prefill_of(times, int(times["depth"].max()), again=True)))
    return {"effect": effect, "ci": (float(lo), float(hi)), "control_effect": again}


def _answer(
    spec: Spec,
    margins: dict[str, float],
    states: dict[str, State],
    advice: Recommendation,
    times: pd.DataFrame | None,
    found: dict[str, Any],
) -> dict[str, str]:
    """The verdict of tasks that use the picture."""
    if times is None:
        why = f"no times of all depths at {spec['image_tokens']} image tokens were given"
        return said("inconclusive", why)
    if (count := times["repetition"].nunique()) < spec["min_repetitions"]:
        least = spec["min_repetitions"]
        return said("inconclusive", f"{count} repetitions; the rule asks for at least {least}")
    if not abs(found["control_effect"]) < margins["no_cut"]:
        faster = "faster" if found["control_effect"] > 0 else "slower"
        why = f"the whole model is {abs(found['control_effect']):.0%} {faster} than itself"
        return said("inconclusive", f"this clock cannot tell: {why}")
    last = int(times["depth"].max())
    bounds = bounds_of(spec, times)
    most, points = margins["time_ratio"], f"{100 * margins['loss']:g} points"
    pays = [d for d, (low, _) in bounds.items() if low <= most]
    if not pays:
        return said("not supported", f"no depth saves {1 - most:.0%} of the prefill, not even 0")
    cut, cache = advice.depth, 1.0
    if cut < last:
        cache = float(times.loc[times["depth"] == cut, "kv_ratio"].median())
        answer = None
        if bounds[cut][1] <= most:
            saving = f"{found['effect']:.0%} of the prefill and {1 - cache:.0%} of the cache"
            why = f"cut at depth {cut} of {last}, answers lose less than {points} and {saving} go"
            answer = said("supported", why)
        elif bounds[cut][0] > most and cache <= margins["kv_ratio"]:
            time = beside(1 - found["effect"], most)
            why = f"the cache shrinks by {1 - cache:.0%}, the prefill takes {time} of its time"
            answer = said("weaker", f"cut at depth {cut} of {last}, {why}")
        if answer is not None:
            return _attributed(spec, states, advice, answer)
    lost = advice.losses.groupby("depth")["low"].max()
    if (lost[pays] >= margins["loss"]).all():
        why = (
            f"each depth that may save {1 - most:.0%} (up to {max(pays)} of {last}) loses {points}"
        )
        return said("not supported", f"{why} or more")
    if cut < last and bounds[cut][0] <= most < bounds[cut][1]:
        low, high = (beside(bound, most) for bound in bounds[cut])
        asked = f"the clock does not tell whether that is at most {most:g}"
        why = f"takes {low} to {high} of the prefill's time: {asked}"
        return said("inconclusive", f"a cut at depth {cut} of {last} keeps answers, but {why}")
    return said("inconclusive", "intervals too wide to tell whether a cut that saves keeps answers")


def _attributed(
    spec: Spec,
    states: dict[str, State],
    advice: Recommendation,
    answer: dict[str, str],
) -> dict[str, str]:
    """Hold the verdict back where the picture's part is unclear or a loss could hide."""
    if advice.n_images < spec["min_images"]:
        why = f"{advice.n_images} images; that nothing is lost takes {spec['min_images']}"
        return said("inconclusive", why)
    for task, (label, _, _) in states.items():
        if label == "no control":
            return said("inconclusive", f"{task} was not tried with another picture")
        if label == "unclear":
            return said("inconclusive", f"whether another picture helps {task} is unclear")
    return answer


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
