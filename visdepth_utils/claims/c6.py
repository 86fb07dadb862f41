"""C6, distillation gives back captions, not charts: the rule behind the entry in data/claims.yaml.

The questions come in this order: does the cut cost anything, do captions come back, do charts not,
and did the training teach the model to use its own picture (and not just to write such captions)?
"""

from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.bootstrap import (
    Interval,
    Resampled,
    as_much,
    beside,
    by_image_and,
    no_more,
    require,
    rule_thresholds,
    said,
)

Spec = dict[str, Any]
NAN = float("nan")
NEEDED = {"image", "task", "mode", "cut", "depth", "state", "score"}


def cut_depth(spec: Spec, n_layers: int) -> int:
    """Where the claim cuts a decoder.

    Args:
        spec: Entry of claims.yaml.
        n_layers: L.

    Returns:
        The registered part of its layers, rounded.
    """
    top, bottom = spec["depth"].split("/")
    return round(n_layers * int(top) / int(bottom))


def lost(spec: Spec, table: pd.DataFrame) -> dict[str, Interval]:
    """What the cut costs, per task, before anything is trained.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``recovery_sweep`` of one or several tasks.

    Returns:
        Task -> s_full - s_truncated. Where its interval is not above 0 there is nothing to recover.
    """
    return {
        task: Resampled.of(_by_state(rows).dropna(), spec["common"]).bounded(
            lambda m: m["full"] - m["truncated"]
        )
        for task, rows in table.groupby("task", sort=False)
    }


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C6.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``recovery_sweep`` of the tasks, one below the other; the controls are states in it.
        controls: Not used.

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If the table lacks a column.
    """
    common, tasks = spec["common"], spec["tasks"]
    require(table, NEEDED, "table", "recovery_sweep")
    rows = table[table["mode"] == spec["mode"]]
    layers = int(rows.loc[rows["state"] == "full", "depth"].max()) if len(rows) else 0
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    found["thresholds"] = rule_thresholds(spec, layers, "mode", "depth", "tasks", "distill")
    if layers < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{layers} decoder layers; it takes at least {least}")
    rows = rows[rows["cut"] == cut_depth(spec, layers)]
    yes, no = tasks["recovers"], tasks["does not"]
    for task in (yes, no):
        if task not in set(rows["task"]):
            return found | said("not testable", f"task {task!r} was not measured at this depth")
    frames = {t: _by_state(r).add_prefix(f"{t} ") for t, r in rows.groupby("task", sort=False)}
    for task in (yes, no):
        whole = frames[task].dropna()
        if len(whole) < (1 - common["max_missing_share"]) * len(frames[task]):
            gone = len(frames[task]) - len(whole)
            why = f"{gone} of {len(frames[task])} images of {task} have no value in every state"
            return found | said("not testable", why)
    drawn = _resampled(frames, common)
    found["n_images"] = n = min(len(frames[task].dropna()) for task in (yes, no))
    gaps = {task: drawn.bounded(lambda m, t=task: _gap(m, t)) for task in frames}
    found["details"] = _details(spec, drawn, frames, gaps)
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if small := [f"{t} {gaps[t].value:+.2f}" for t in (yes, no) if not gaps[t].lo > 0]:
        why = f"the cut does not lower the score beyond doubt ({', '.join(small)})"
        return found | said("not testable", why)
    if lacking := [t for t in (yes, no) if f"{t} recovered" not in drawn.means]:
        return found | said("not testable", f"no adapter was trained for {' and '.join(lacking)}")
    own = drawn.bounded(lambda m: _share(m, yes))
    effect = drawn.bounded(lambda m: _share(m, yes) - _share(m, no))
    found |= {"effect": effect.value, "ci": (effect.lo, effect.hi)}
    contrast = None
    if f"{yes} shuffled" in drawn.means:
        control = drawn.bounded(lambda m: _share(m, yes, "shuffled"))
        contrast = drawn.bounded(lambda m: _share(m, yes) - _share(m, yes, "shuffled"))
        found["control_effect"] = control.value
        shows = {"control": "shuffled pictures", "shows it": as_much(control, contrast)}
        numbers = {"effect": control.value, "contrast": contrast.value}
        found["controls"] = pd.DataFrame([shows | numbers | {"lo": contrast.lo, "hi": contrast.hi}])
    return found | _answer(spec, own, effect, contrast)


def _answer(
    spec: Spec, own: Interval, effect: Interval, contrast: Interval | None
) -> dict[str, str]:
    """The verdict where the cut costs something in both tasks."""
    least = spec["margins"]["recovered"]["value"]
    yes, no = (spec["tasks"][name] + "s" for name in ("recovers", "does not"))
    if own.above(least) is False:
        back = beside(own.value, least)
        return said("not supported", f"{yes} get {back} of what they lost back")
    if effect.value <= 0:
        recover = "more than" if effect.hi < 0 else "as much as"
        return said("not supported", f"{no} recover {recover} {yes}")
    if own.above(least) is None:
        why = f"intervals too wide to tell whether {yes} get more than {least:g} back"
        return said("inconclusive", why)
    if not effect.lo > 0:
        return said("inconclusive", f"intervals too wide to tell whether {yes} recover more")
    if contrast is None:
        return said("inconclusive", "training with shuffled pictures was not tried")
    if not contrast.lo > 0:
        why = f"{no_more(contrast.hi)} than when trained with shuffled pictures"
        return said("weaker", f"{yes} recover {why}")
    return said("supported", f"{yes} recover, {no} clearly less, and pictures are needed for it")


def _by_state(rows: pd.DataFrame) -> pd.DataFrame:
    """Score per image (rows) and state (columns)."""
    return by_image_and(rows, ["state"], "score")


def _resampled(frames: dict[str, pd.DataFrame], common: dict[str, Any]) -> Resampled:
    """Tasks about the same images move together; others by themselves."""
    names = list(frames)
    whole = {name: frame.dropna() for name, frame in frames.items()}
    groups: list[list[str]] = []
    for name in names:
        for group in groups:
            if set(whole[group[0]].index) & set(whole[name].index):
                group.append(name)
                break
        else:
            groups.append([name])
    means: dict[str, float] = {}
    draws: dict[str, np.ndarray] = {}
    for number, group in enumerate(groups):
        joint = pd.concat([whole[name] for name in group], axis=1)
        seeded = {**common, "seed": common["seed"] + number}
        part = Resampled.of(joint, seeded)
        means |= part.means
        draws |= part.draws
    return Resampled(means, draws, common["level"])


def _gap(m: dict[str, Any], task: str) -> Any:
    return m[f"{task} full"] - m[f"{task} truncated"]


def _share(m: dict[str, Any], task: str, state: str = "recovered") -> Any:
    """Part of what the cut costs that is there again."""
    return (m[f"{task} {state}"] - m[f"{task} truncated"]) / _gap(m, task)


def _details(
    spec: Spec, drawn: Resampled, frames: dict[str, pd.DataFrame], gaps: dict[str, Interval]
) -> pd.DataFrame:
    """One row per part of the claim, for the reader."""
    rows, least = [], spec["margins"]["recovered"]["value"]
    for task in frames:
        for state in ("full", "truncated"):
            score = drawn.bounded(lambda m, t=task, s=state: m[f"{t} {s}"])
            rows.append(score.row(f"{task}: score, {state}"))
        clear = "lost" if gaps[task].lo > 0 else "not beyond doubt"
        rows.append(gaps[task].row(f"{task}: lost by the cut", clear, 0))
        for state in ("recovered", "shuffled"):
            if f"{task} {state}" in drawn.means and gaps[task].lo > 0:
                share = drawn.bounded(lambda m, t=task, s=state: _share(m, t, s))
                margin = least if (task, state) == (spec["tasks"]["recovers"], "recovered") else NAN
                rows.append(share.row(f"{task}: share back, {state}", "", margin))
        if f"{task} full trained" in drawn.means:
            more = drawn.bounded(lambda m, t=task: m[f"{t} full trained"] - m[f"{t} full"])
            name = f"{task}: full model, score gained by the same training"
            rows.append(more.row(name, "reported"))
    return pd.DataFrame(rows)
