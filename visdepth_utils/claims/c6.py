"""C6, distillation gives back captions, not charts: the rule behind the entry in data/claims.yaml.

The questions come in this order: does the cut cost anything, has the training converged, do
captions come back, do charts not, and did the training teach the model to use its own picture (and
not just to write such captions)? What a training gives back counts only once its validation loss
has ended its fall; several trainings are resampled like the images.
"""

import json
from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.bootstrap import (
    Interval,
    Resampled,
    as_much,
    beside,
    by_image_and,
    require,
    rule_thresholds,
    said,
)
from visdepth_utils.claims.once import only, values_of

Spec = dict[str, Any]
NAN = float("nan")
NEEDED = {"image", "task", "mode", "cut", "depth", "state"}
PLAIN = ("full", "truncated")
WHICH = ["rate", "seed", "steps"]
"""Columns that tell trainings apart; older tables have none of them, and one training per state."""


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
        task: Resampled.of(
            by_image_and(rows[rows["state"].isin(PLAIN)], ["state"], spec["score"]).dropna(),
            spec["common"],
        ).bounded(lambda m: m["full"] - m["truncated"])
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
    require(table, NEEDED | {spec["score"]}, "table", "recovery_sweep")
    rows = only(table, mode=spec["mode"])
    layers = int(rows.loc[rows["state"] == "full", "depth"].max()) if len(rows) else 0
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    found["thresholds"] = rule_thresholds(
        spec, layers, "mode", "depth", "tasks", "distill", "convergence", "trainings"
    )
    if layers < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{layers} decoder layers; it takes at least {least}")
    rows = rows[rows["cut"] == cut_depth(spec, layers)]
    yes, no = tasks["recovers"], tasks["does not"]
    for task in (yes, no):
        if task not in values_of(rows, "task"):
            return found | said("not testable", f"task {task!r} was not measured at this depth")
    rows = _numbered(rows)
    known = _trainings(spec, rows)
    counted = _counted(spec, known)
    frames = {
        t: _by_column(spec, r).add_prefix(f"{t} ") for t, r in rows.groupby("task", sort=False)
    }
    for task in (yes, no):
        whole = frames[task].dropna()
        if len(whole) < (1 - common["max_missing_share"]) * len(frames[task]):
            gone = len(frames[task]) - len(whole)
            why = f"{gone} of {len(frames[task])} images of {task} have no value in every state"
            return found | said("not testable", why)
    drawn = _pooled(_resampled(frames, common), counted, common)
    found["n_images"] = n = min(len(frames[task].dropna()) for task in (yes, no))
    gaps = {task: drawn.bounded(lambda m, t=task: _gap(m, t)) for task in frames}
    found["details"] = _details(spec, drawn, frames, gaps, known, counted)
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if small := [f"{t} {gaps[t].value:+.2f}" for t in (yes, no) if not gaps[t].lo > 0]:
        why = f"the cut does not lower the score beyond doubt ({', '.join(small)})"
        return found | said("not testable", why)
    if lacking := [t for t in (yes, no) if f"{t} recovered" not in drawn.means]:
        why = f"no adapter was trained for {' and '.join(lacking)}"
        if known.empty or spec["trainings"] == {"rates": "all", "seeds": "all"}:
            return found | said("not testable", why)
        return found | said("not testable", f"{why} at this rate and seed")
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
    answer = _answer(spec, own, effect, contrast)
    if why := _unfinished(spec, known, [(yes, "recovered"), (no, "recovered")]):
        answer = said("inconclusive", why)
    elif answer["verdict"] in ("supported", "weaker") and (  # the others need no control
        why := _unfinished(spec, known, [(yes, "shuffled")])
    ):
        answer = said("inconclusive", f"the control has {why}")
    return found | answer


def _answer(
    spec: Spec, own: Interval, effect: Interval, contrast: Interval | None
) -> dict[str, str]:
    """The verdict where the cut costs something in both tasks."""
    least, apart = (spec["margins"][name]["value"] for name in ("recovered", "difference"))
    yes, no = (spec["tasks"][name] + "s" for name in ("recovers", "does not"))
    if own.above(least) is False:
        back = beside(own.value, least)
        return said("not supported", f"{yes} get {back} of what they lost back")
    if effect.below(apart):
        recover = "more than" if effect.hi < 0 else "as much as"
        return said("not supported", f"{no} recover {recover} {yes}")
    if own.above(least) is None:
        why = f"intervals too wide to tell whether {yes} get more than {least:g} back"
        return said("inconclusive", why)
    if not effect.lo > 0:
        return said("inconclusive", f"intervals too wide to tell whether {yes} recover more")
    if contrast is None:
        return said("inconclusive", "training with shuffled pictures was not tried")
    if contrast.lo > 0:
        return said(
            "supported", f"{yes} recover, {no} clearly less, and pictures are needed for it"
        )
    if contrast.below(apart):
        recover = "less than" if contrast.hi < 0 else "as much as"
        return said("weaker", f"{yes} recover {recover} when trained with shuffled pictures")
    return said("inconclusive", "intervals too wide to tell whether the right pictures are needed")


def _trainings(spec: Spec, rows: pd.DataFrame) -> pd.DataFrame:
    """What the validation loss says of each training.

    ``late``: part of its whole fall that came while the last of the learning rates were spent;
    ``above``: part of the fall of the best training of this task and state that this one lacks.
    Where nothing was kept, or the loss never fell, they are NaN, and it has not converged.
    """
    limits, keys = spec["convergence"], ["task", "state", "number"]
    own = rows[~rows["state"].isin(PLAIN)].drop_duplicates(keys)
    known = own[[*keys, *WHICH, "curve"]].reset_index(drop=True)
    ends = pd.DataFrame(
        [_ends(curve, limits["last"]) for curve in known.pop("curve")],
        columns=["first", "before", "best"],
        index=known.index,
    ).astype(float)
    lowest = ends["best"].groupby([known["task"], known["state"]]).transform("min")
    fall = (ends["first"] - ends["best"]).where(lambda x: x > 0)
    whole = (ends["first"] - lowest).where(lambda x: x > 0)
    known["recorded"] = ends["best"].notna()
    known["late"] = (ends["before"] - ends["best"]) / fall
    known["above"] = (ends["best"] - lowest) / whole
    known["converged"] = (known["late"] <= limits["share"]) & (known["above"] <= limits["share"])
    return known


def _ends(curve: str, last: float) -> tuple[float, float, float]:
    """Validation loss at the start, the lowest before the last part, and the lowest of all."""
    if not isinstance(curve, str) or not curve:
        return NAN, NAN, NAN
    _, spent, loss = np.array(json.loads(curve), float).T
    return float(loss[0]), float(loss[spent <= 1 - last].min()), float(loss.min())


def _counted(spec: Spec, known: pd.DataFrame) -> pd.DataFrame:
    """The trainings that the numbers are of: the converged; where none of a state is, all of it."""
    keep = known
    for name in ("rate", "seed"):
        if (wanted := spec["trainings"][f"{name}s"]) != "all":
            keep = keep[keep[name].isin(wanted)]
    if not spec["convergence"]["required"] or keep.empty:
        return keep
    some = keep["converged"].groupby([keep["task"], keep["state"]]).transform("any")
    return keep[keep["converged"] | ~some]


def _unfinished(spec: Spec, known: pd.DataFrame, asked: list[tuple[str, str]]) -> str:
    """Why what a training gives back does not count; empty where it does, or there is none."""
    limit, told = spec["convergence"]["share"], []
    if not spec["convergence"]["required"]:
        return ""
    for task, state in asked:
        own = _counted(spec, known)
        own = own[(own["task"] == task) & (own["state"] == state)]
        if own.empty or own["converged"].any():
            continue
        best = own.loc[own["late"].fillna(1).idxmin()]
        if not own["recorded"].any():
            why = "no validation loss was kept"
        elif own["late"].isna().all():
            why = "the validation loss never fell"
        elif best["late"] > limit:
            why = f"{best['late']:.0%} of the fall of the validation loss came at the end"
        else:
            why = f"another training's validation loss fell {best['above']:.0%} further"
        told.append(f"{task}s: {why}")
    return f"not converged ({'; '.join(told)})" if told else ""


def _by_column(spec: Spec, rows: pd.DataFrame) -> pd.DataFrame:
    """Score per image (rows) and state, or state and number of the training (columns)."""
    return by_image_and(rows, ["column"], spec["score"])


def _numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns that older tables lack, and the column that a row belongs to."""
    blank = {**dict.fromkeys(WHICH, NAN), "curve": ""}
    rows = rows.assign(**{name: value for name, value in blank.items() if name not in rows})
    number = rows.groupby(WHICH, sort=False, dropna=False).ngroup()
    trained = rows["state"] + "#" + number.astype(str)
    return rows.assign(
        number=number, column=trained.where(~rows["state"].isin(PLAIN), rows["state"])
    )


def _pooled(drawn: Resampled, counted: pd.DataFrame, common: dict[str, Any]) -> Resampled:
    """Means over the trainings of a state, which are resampled too where there are several.

    The bootstrap of n is too narrow by the root of n / (n - 1), which is made good.
    """
    means, draws = dict(drawn.means), dict(drawn.draws)
    for number, ((task, state), own) in enumerate(counted.groupby(["task", "state"], sort=False)):
        names = [f"{task} {state}#{k}" for k in own["number"]]
        values, n = np.array([means[name] for name in names]), len(names)
        pooled = np.mean([draws[name] for name in names], axis=0)
        if n > 1:
            rng = np.random.default_rng([common["seed"], number])
            taken = rng.multinomial(n, np.full(n, 1 / n), size=len(pooled)) / n
            pooled = pooled + np.sqrt(n / (n - 1)) * (taken @ values - values.mean())
        means[f"{task} {state}"], draws[f"{task} {state}"] = np.float64(values.mean()), pooled
    return Resampled(means, draws, common["level"])


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
    spec: Spec,
    drawn: Resampled,
    frames: dict[str, pd.DataFrame],
    gaps: dict[str, Interval],
    known: pd.DataFrame,
    counted: pd.DataFrame,
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
                own = counted[(counted["task"] == task) & (counted["state"] == state)]
                label = f"{len(own)} trainings" if len(own) > 1 else "one training: images only"
                rows.append(share.row(f"{task}: share back, {state}", label, margin))
        if f"{task} full trained" in drawn.means:
            more = drawn.bounded(lambda m, t=task: m[f"{t} full trained"] - m[f"{t} full"])
            name = f"{task}: full model, score gained by the same training"
            rows.append(more.row(name, "reported"))
    for row in known[known["state"] != "full trained"].itertuples():
        if gaps[row.task].lo > 0 and row.recorded:
            key = f"{row.state}#{row.number}"
            share = drawn.bounded(lambda m, t=row.task, s=key: _share(m, t, s))
            settings = f"rate {row.rate:g}, {row.steps:.0f} steps, seed {row.seed:.0f}"
            label = "converged" if row.converged else "not converged"
            rows.append(share.row(f"{row.task}: share back, {row.state}, {settings}", label))
    return pd.DataFrame(rows)
