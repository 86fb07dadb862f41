"""C8, image tokens can be dropped at a saving that pays: the rule behind data/claims.yaml.

The questions come in this order: do the tasks use the picture, is there a cut that answers keep,
and do FLOPs and cache fall by enough there. What a clock makes of it is reported beside.
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
from visdepth_utils.claims.once import only, values_of
from visdepth_utils.claims.retention import SWEEP, Spec, State, another_picture, columns_of, usable
from visdepth_utils.claims.savings import (
    Recommendation,
    median_bounds,
    ratios_by_repetition,
    recommend_depth,
)

NAN = float("nan")
COSTS = {"image_tokens", "depth", "prefill_ratio", "kv_ratio"}
UNITS = {"costs": "FLOPs", "clock": "time"}


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C8.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``truncation_sweep`` of single-token tasks, one below the other.
        controls: ``"costs"``: ``predicted_costs`` of the model's own decoder, which decide;
            ``"times"``: its ``time_by_depth``, which are reported beside; ``"conditions"``:
            ``evaluate`` without picture and with another one. Without costs nothing is testable,
            without conditions nothing "supported".

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If a table lacks a column, or the conditions lack images of the sweep.
    """
    common, margins = spec["common"], {k: m["value"] for k, m in spec["margins"].items()}
    require(table, SWEEP | {spec["score"]}, "table", "truncation_sweep")
    sweep = only(table, mode=spec["mode"], task=spec["tasks"])
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    depth = 0 if sweep.empty else int(sweep["depth"].max())
    settings = ("mode", "score", "tasks", "decides", "image_tokens", "min_repetitions")
    found["thresholds"] = rule_thresholds(spec, depth, *settings, "min_images")
    if lacking := [task for task in spec["tasks"] if task not in values_of(sweep, "task")]:
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
    depths = sorted(set(sweep["depth"]))
    times = ratios_of(spec, controls.get("times"), depths)
    counted = spec["decides"] == "costs"
    shares = counted_of(spec, controls.get("costs"), depths)
    if not counted:
        shares = None if times is None else timed_of(spec, times)
    if advice is not None and shares is not None:
        saved = 1 - shares["prefill"]
        lo, hi = np.quantile(saved[advice.distribution], ends_of(spec))
        found |= {"effect": float(saved[advice.depth]), "ci": (float(lo), float(hi))}
    others = [states[task][2] for task in used]
    found["control_effect"] = max((o.value for o in others if o is not None), default=NAN)
    clock = ("was not asked", None) if advice is None else _clock(spec, times, advice.depth)
    found["details"] = details_of(spec, states, advice, shares, times, clock)
    found["controls"] = controls_of(spec, states, times)
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if advice is None:
        why = "; ".join(f"{task} {state[0]}" for task, state in states.items())
        return found | said("not testable", f"the model cannot do it ({why})")
    if shares is None:
        what = "costs" if counted else "times"
        why = f"no {what} of all depths at {spec['image_tokens']} image tokens were given"
        return found | said("not testable", why)
    if not counted and clock[1] is None:
        return found | said("inconclusive", f"the clock {clock[0]}")
    return found | _answer(spec, states, advice, shares, clock[0])


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


def _clock(spec: Spec, times: pd.DataFrame | None, cut: int) -> tuple[str, Interval | None]:
    """What the clock says of a cut, in words, and bounds of the median ratio if it can tell."""
    if times is None:
        return "was not asked", None
    if (count := times["repetition"].nunique()) < spec["min_repetitions"]:
        return f"does not tell: {count} repetitions, it takes {spec['min_repetitions']}", None
    last, most = int(times["depth"].max()), spec["margins"]["prefill_ratio"]["value"]
    saved = 1 - float(np.median(prefill_of(times, last, again=True)))
    if not abs(saved) < spec["margins"]["no_cut"]["value"]:
        faster = "faster" if saved > 0 else "slower"
        return f"does not tell: the whole model is {abs(saved):.0%} {faster} than itself", None
    low, ratio, high = timed_of(spec, times).loc[cut, ["low", "prefill", "high"]]
    word = "agrees" if high <= most else "disagrees" if low > most else "does not tell"
    words = f"{word} ({beside(low, most)} to {beside(high, most)} of the time)"
    return words, Interval(ratio, low, high, low, high)


def _answer(
    spec: Spec,
    states: dict[str, State],
    advice: Recommendation,
    shares: pd.DataFrame,
    clock: str,
) -> dict[str, str]:
    """The verdict of tasks that use the picture, by what a cut leaves of the whole model's cost."""
    most, cached, loss = (
        spec["margins"][name]["value"] for name in ("prefill_ratio", "kv_ratio", "loss")
    )
    unit, cut, last = UNITS[spec["decides"]], advice.depth, int(shares.index.max())
    points, quarter = f"{100 * loss:g} points", f"{1 - most:.0%} of the prefill's {unit}"
    may = shares[(shares["low"] <= most) & (shares["kv"] <= cached)].index
    if may.empty:
        return said("not supported", f"no depth saves {quarter} and of the cache, not even 0")
    low, ratio, high, cache = shares.loc[cut, ["low", "prefill", "high", "kv"]]
    where = f"cut at depth {cut} of {last}"
    if cut in may and high <= most:
        saving = f"{1 - ratio:.0%} of the prefill's {unit} and {1 - cache:.0%} of the cache go"
        answer = said("supported", f"{where}, answers lose less than {points} and {saving}")
        return _attributed(spec, states, advice, clock, answer)
    if cut < last and (low > most and cache <= cached or high <= most and cache > cached):
        left = f"{beside(ratio, most)} of the prefill's {unit} and {beside(cache, cached)}"
        why = f"{where}, answers keep, but {left} of the cache are left"
        return _attributed(spec, states, advice, clock, said("weaker", why))
    lost = advice.losses.groupby("depth")["low"].max()
    if (lost[may] >= loss).all():
        why = f"each depth that may save {quarter} (up to {may.max()} of {last}) loses {points}"
        return said("not supported", f"{why} or more")
    if cut in may:
        asked = f"the clock does not tell whether that is at most {most:g}"
        taken = f"takes {beside(low, most)} to {beside(high, most)} of the prefill's time"
        return said("inconclusive", f"a {where} keeps answers, but {taken}: {asked}")
    return said("inconclusive", "intervals too wide to tell whether a cut that saves keeps answers")


def _attributed(
    spec: Spec,
    states: dict[str, State],
    advice: Recommendation,
    clock: str,
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
    if spec["decides"] == "clock":
        return answer
    return said(answer["verdict"], f"{answer['reason']}; the clock {clock}")


def ends_of(spec: Spec) -> list[float]:
    """Quantiles of a two-sided interval."""
    level = spec["common"]["level"]
    return [(1 - level) / 2, (1 + level) / 2]


def counted_of(spec: Spec, costs: pd.DataFrame | None, depths: list[int]) -> pd.DataFrame | None:
    """Shares of cost by depth, counted: both bounds are the share itself.

    Args:
        spec: Entry of claims.yaml.
        costs: ``predicted_costs`` of one decoder, of several counts of image tokens or of one.
        depths: That must be there.

    Returns:
        By depth ``low, prefill, high, kv``; None where the costs do not cover the depths.
    """
    if costs is None:
        return None
    require(costs, COSTS, "costs", "costs.predicted_costs")
    own = costs[costs["image_tokens"] == spec["image_tokens"]].set_index("depth").sort_index()
    if not set(depths) <= set(own.index):
        return None
    prefill = own["prefill_ratio"]
    bounds = {"low": prefill, "prefill": prefill, "high": prefill}
    return pd.DataFrame(bounds | {"kv": own["kv_ratio"]})


def timed_of(spec: Spec, times: pd.DataFrame) -> pd.DataFrame:
    """As ``counted_of``, of the clock: medians with one-sided bounds; the whole model takes 1."""
    rows = {}
    for depth, own in times[~times["again"]].groupby("depth"):
        ratios = own["prefill_ratio"].to_numpy()
        low, high = median_bounds(ratios, spec["common"]["level"])
        rows[depth] = (low, np.median(ratios), high, own["kv_ratio"].median())
    return pd.DataFrame.from_dict(rows, orient="index", columns=["low", "prefill", "high", "kv"])


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


def controls_of(
    spec: Spec,
    states: dict[str, State],
    times: pd.DataFrame | None,
) -> pd.DataFrame:
    """Another picture per task, and for the clock the whole model against itself."""
    rows = another_picture(spec, states, ", share of the gain")
    if times is not None:
        saved = 1 - prefill_of(times, int(times["depth"].max()), again=True)
        shows = "no" if abs(np.median(saved)) < spec["margins"]["no_cut"]["value"] else "yes"
        row = {"control": "the clock: no cut, time saved (range)", "shows it": shows}
        rows.append(row | {"effect": np.median(saved), "lo": saved.min(), "hi": saved.max()})
    return pd.DataFrame(rows)


def details_of(
    spec: Spec,
    states: dict[str, State],
    advice: Recommendation | None,
    shares: pd.DataFrame | None,
    times: pd.DataFrame | None,
    clock: tuple[str, Interval | None],
) -> pd.DataFrame:
    """One row per part of the claim, for the reader."""
    margins, rows = {k: m["value"] for k, m in spec["margins"].items()}, []
    for task, (label, gain, _) in states.items():
        rows.append(gain.row(f"{task}: gain by the picture", label, margins["gain"]))
    if advice is None:
        return pd.DataFrame(rows)
    depth = Interval(advice.depth, advice.lo, advice.hi, NAN, NAN)
    rows.append(depth.row("recommended depth", "all tasks that count"))
    for row in advice.losses[advice.losses["depth"] == advice.depth].itertuples():
        loss = Interval(row.loss, row.low, row.high, row.low, row.high)
        rows.append(loss.row(f"{row.task}: loss there", "90% interval", margins["loss"]))
    if shares is not None:
        saves = shares[
            (shares["low"] <= margins["prefill_ratio"]) & (shares["kv"] <= margins["kv_ratio"])
        ]
        deepest = Interval(saves.index.max(), *[NAN] * 4)
        rows.append(deepest.row("deepest cut that may save enough", "reported only"))
        how = {"costs": "counted", "clock": "measured"}[spec["decides"]]
        unit = UNITS[spec["decides"]]
        for name, measure, margin in (
            ("prefill", f"prefill: {unit} left there", "prefill_ratio"),
            ("kv", "cache: bytes left there", "kv_ratio"),
        ):
            low, high = np.quantile(shares.loc[advice.distribution, name], ends_of(spec))
            left = Interval(shares.loc[advice.depth, name], low, high, NAN, NAN)
            rows.append(left.row(measure, f"{how}; interval over pictures", margins[margin]))
    if times is None:
        return pd.DataFrame(rows)
    if clock[1] is not None:
        label = f"the clock {clock[0].split(' (')[0]}"
        rows.append(clock[1].row("prefill: median time there", label, margins["prefill_ratio"]))
    for name in ("prefill", "decode"):
        own = times[(times["depth"] == advice.depth) & ~times["again"]][f"{name}_ratio"]
        bounded = Interval(float(own.median()), float(own.min()), float(own.max()), NAN, NAN)
        rows.append(bounded.row(f"{name}: time there", "range of repetitions"))
    return pd.DataFrame(rows)
