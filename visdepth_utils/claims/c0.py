"""C0, image tokens must be read, but need they be processed: the rule in data/claims.yaml.

Interventions from layer d on, on the same images: *freeze* (later layers read the image as it was
at d, it is not processed any more), and ways to take reading away: *remove*, and freezing other
states in the place of the image's own. Per task, p is the depth from which freezing costs nothing
that counts, and r, for each of the ways, that from which it does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pandas as pd

from visdepth_utils.claims.bootstrap import (
    Interval,
    Resampled,
    by_image_and,
    require,
    rule_thresholds,
    said,
)
from visdepth_utils.claims.once import only, values_of
from visdepth_utils.claims.retention import CONDITIONS, SWEEP, Spec, State, scores_of, usable
from visdepth_utils.claims.verdict import headline

__all__ = ["Depth", "decide", "early_depth", "least_depth", "title_answer"]

NAN = float("nan")


@dataclass(frozen=True)
class Depth:
    """From which depth on an intervention costs less than the margin.

    Attributes:
        value: By the means alone.
        lo: At least this deep, beyond doubt.
        hi: At most this deep, beyond doubt.
    """

    value: int
    lo: int
    hi: int

    def __str__(self) -> str:
        """The number, or its bounds."""
        return str(self.lo) if self.lo == self.hi else f"{self.lo} to {self.hi}"


def early_depth(spec: Spec, n_layers: int) -> int:
    """The last depth that counts as early: ``early`` of the decoder, rounded down."""
    return int(Fraction(spec["early"]) * n_layers)


def least_depth(losses: dict[int, Interval], margin: float) -> Depth:
    """The least depth from which on all losses lie below the margin, with bounds.

    Both bounds come from fixed sequences of one-sided tests, each at the same level: from the last
    depth downward as long as the loss lies below the margin, and from the first upward as long as
    it lies above. So each bound errs at most as often as a single test.

    Args:
        losses: Depth -> share of the gain that is lost; the last depth is the whole model.
        margin: Loss that does not count.

    Returns:
        The depth.
    """
    depths = sorted(losses)
    value = hi = depths[-1]
    for depth in reversed(depths):
        if not losses[depth].value < margin:
            break
        value = depth
    for depth in reversed(depths):
        if losses[depth].below(margin) is not True:
            break
        hi = depth
    lo = depths[0]
    for depth in depths:
        if losses[depth].above(margin) is not True:
            break
        lo = depth + 1
    return Depth(value, lo, hi)


def title_answer(entry: Mapping[str, Any]) -> str:
    """What a stored verdict of C0 says on the question in the paper's title.

    Args:
        entry: Of claims.json.

    Returns:
        One paragraph, its numbers from ``details``; without them, verdict and reason.
    """
    where = f"{entry['model']}, {entry['n_images']} images"
    process, read, frozen, removed = (
        {
            row["measure"].partition(": ")[0]: row["estimate"]
            for row in entry.get("details") or []
            if row["measure"].partition(": ")[2].startswith(what)
        }
        for what in ("must process until", "must read until", "kept, freeze", "kept, remove")
    )
    if not process:
        return f"{where}: {entry['verdict']} ({entry.get('reason') or '-'})."
    label = headline(entry["verdict"], (entry.get("robustness") or {}).get("fragile"))
    each = ", ".join(f"{task} {p:.0f} and {read[task]:.0f}" for task, p in process.items())
    return (
        f"{where}: the verdict is {label}. With image states frozen from the first depth on, "
        f"{_range(frozen)} of what the picture brings is left, by task; with image tokens removed "
        f"from there on, {_range(removed)}. Until which depth they must be processed, and read: "
        f"{each}."
    )


def _range(shares: Mapping[str, float]) -> str:
    """The least and the largest, or the one number."""
    low, high = (f"{round(x, 2) + 0.0:.2f}" for x in (min(shares.values()), max(shares.values())))
    return low if low == high else f"{low} to {high}"


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C0.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``truncation_sweep`` of all tasks in the modes of ``modes``, and in those of
            ``control_modes``, at the early depths at least, one below the other.
        controls: ``"conditions"``: ``evaluate`` without picture and with another one; without it
            the score without picture is that of depth 0, and nothing is "supported".

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If a table lacks a column, or the conditions lack images of the sweep.
    """
    common, modes = spec["common"], spec["modes"]
    require(table, SWEEP | {spec["score"]}, "table", "truncation_sweep")
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    n_layers = int(table["depth"].max()) if len(table) else 0
    found["thresholds"] = rule_thresholds(spec, n_layers, "score", "floor", "tasks", "early")
    for mode in modes.values():
        there = values_of(only(table, mode=mode), "task")
        if lacking := [task for task in spec["tasks"] if task not in there]:
            return found | said("not testable", f"table has no task {lacking[0]!r} in mode {mode}")
    if n_layers < (least := common["min_layers"]):
        return found | said("not testable", f"{n_layers} decoder layers; it takes at least {least}")
    frames = {task: _columns(spec, table, controls, task) for task in spec["tasks"]}
    whole = {task: frame.dropna() for task, frame in frames.items()}
    found["n_images"] = n = min(len(frame) for frame in whole.values())
    for task, frame in frames.items():
        have = len(whole[task])
        if have == 0 or have < (1 - common["max_missing_share"]) * len(frame):
            why = f"{len(frame) - have} of {len(frame)} images of {task} have no value"
            return found | said("not testable", why)
    drawn = Resampled.of(
        pd.concat([f.add_prefix(f"{task} ") for task, f in whole.items()], axis=1), common
    )
    states = {task: usable(spec, drawn, task) for task in spec["tasks"]}
    used = [task for task, state in states.items() if not state[0].startswith("skipped")]
    if n < common["min_images"]:
        why = f"{n} images; the rule asks for at least {common['min_images']}"
        return found | said("inconclusive", why)
    if not used:
        why = "; ".join(f"{task} {state[0]}" for task, state in states.items())
        return found | said("not testable", f"the model cannot do it ({why})")
    reach = {task: _reach(spec, drawn, task, n_layers) for task in used}
    contrast = drawn.bounded(
        lambda m: sum(_area(m, task, modes, n_layers) for task in used) / len(used)
    )
    harm = _harm(spec, drawn, reach)
    found |= {"effect": contrast.value, "ci": (contrast.lo, contrast.hi)}
    found["details"] = _details(spec, drawn, states, reach, contrast)
    found["controls"] = harm
    if len(harm):
        found["control_effect"] = float(harm["effect"].max())
    return found | _answer(spec, states, reach, contrast, n_layers)


def _columns(
    spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame], task: str
) -> pd.DataFrame:
    """One row per image: the scores of ``scores_of``, and one column per mode and depth."""
    conditions = controls.get("conditions", pd.DataFrame(columns=sorted(CONDITIONS)))
    require(conditions, CONDITIONS, "conditions", "evaluate")
    own = only(table, task=task)
    out = [scores_of(spec, only(own, mode=spec["modes"]["reads"]), conditions, task)]
    for mode in (*spec["modes"].values(), *spec["control_modes"]):
        rows = only(own, mode=mode)
        if len(rows):
            curve = by_image_and(rows, ["depth"], spec["score"])
            out.append(curve.rename(columns=lambda depth, mode=mode: f"{mode} {int(depth)}"))
    return pd.concat(out, axis=1)


def _depths(drawn: Resampled, task: str, mode: str) -> list[int]:
    """Depths at which a task was measured in a mode."""
    start = f"{task} {mode} "
    names = (name.removeprefix(start) for name in drawn.means if name.startswith(start))
    return sorted(int(rest) for rest in names if rest.isdigit())


def _kept(m: dict[str, Any], task: str, mode: str, depth: int) -> Any:
    """Share of the gain by the picture that is left."""
    floor = m[f"{task} floor"]
    return (m[f"{task} {mode} {depth}"] - floor) / (m[f"{task} full"] - floor)


def _loss(drawn: Resampled, task: str, mode: str, depth: int) -> Interval:
    return drawn.bounded(lambda m: 1 - _kept(m, task, mode, depth))


def _reach(spec: Spec, drawn: Resampled, task: str, n_layers: int) -> dict[str, Depth]:
    """Mode -> the depth from which on it costs a task nothing that counts."""
    margin, whole = spec["margins"]["loss"]["value"], {n_layers: Interval(0, 0, 0, 0, 0)}
    measured = {
        mode: _depths(drawn, task, mode)
        for mode in (*spec["modes"].values(), *spec["control_modes"])
    }
    return {
        mode: least_depth({d: _loss(drawn, task, mode, d) for d in depths} | whole, margin)
        for mode, depths in measured.items()
        if depths
    }


def _area(m: dict[str, Any], task: str, modes: dict[str, str], n_layers: int) -> Any:
    """Share of the gain kept when frozen minus when removed, averaged over the depths below L."""
    frozen, gone = modes["processes"], modes["reads"]
    depths = [d for d in range(n_layers) if f"{task} {frozen} {d}" in m]
    kept = [_kept(m, task, frozen, d) - _kept(m, task, gone, d) for d in depths]
    return sum(kept) / len(kept)


def _harm(spec: Spec, drawn: Resampled, reach: dict[str, dict[str, Depth]]) -> pd.DataFrame:
    """One row per control and task: share kept with other states frozen from depth p on."""
    rows = []
    for mode in spec["control_modes"]:
        for task, depths in reach.items():
            at = depths[spec["modes"]["processes"]].hi
            if mode not in depths or at not in _depths(drawn, task, mode):
                continue
            loss = _loss(drawn, task, mode, at)
            row = {"control": f"{mode} ({task}, depth {at})", "effect": 1 - loss.value}
            row |= {"lo": 1 - loss.hi, "hi": 1 - loss.lo, "read until": str(depths[mode])}
            rows.append(row | {"shows it": _shows(depths, spec["modes"]["processes"], mode)})
    columns = ["control", "effect", "lo", "hi", "read until", "shows it"]
    return pd.DataFrame(rows, columns=columns)


def _shows(depths: dict[str, Depth], frozen: str, mode: str) -> str:
    """Whether a way to take reading away does as little harm as freezing."""
    p, r = depths[frozen], depths[mode]
    return "no" if p.hi < r.lo else "yes" if r.hi <= p.lo else "unclear"


def _answer(
    spec: Spec,
    states: dict[str, State],
    reach: dict[str, dict[str, Depth]],
    contrast: Interval,
    n_layers: int,
) -> dict[str, str]:
    """The verdict, in the order of the questions."""
    early, least = early_depth(spec, n_layers), spec["margins"]["contrast"]["value"]
    frozen, gone = spec["modes"]["processes"], spec["modes"]["reads"]
    p = {task: depths[frozen] for task, depths in reach.items()}
    pairs = "; ".join(
        f"{task}: processed until {depths[frozen]}, read until {depths[gone]}"
        for task, depths in reach.items()
    )
    if contrast.below(least):
        why = f"freezing image states costs as much as removing them ({pairs})"
        return said("not supported", why)
    shows = {
        (mode, task): _shows(depths, frozen, mode)
        for mode in (gone, *spec["control_modes"])
        for task, depths in reach.items()
        if mode in depths
    }
    for (mode, task), shown in shows.items():
        if shown == "yes" and mode == gone:
            return said("not supported", f"{task} needs processing as long as reading ({pairs})")
    for (mode, task), shown in shows.items():
        if shown == "yes":
            why = f"{mode} costs {task} as little: what is read is not this image"
            return said("weaker", f"{why} ({pairs})")
    unclear = [pair for pair, shown in shows.items() if shown == "unclear"]
    if doubtful := [task for mode, task in unclear if mode == gone]:
        why = f"whether removing costs {doubtful[0]} as little as freezing is unclear"
        return said("inconclusive", f"{why} ({pairs})")
    if late := [task for task in reach if p[task].lo > early]:
        what = f"must process until depth {p[late[0]]} of {n_layers} ({late[0]})"
        return said("weaker", f"{what}, less long than it must read ({pairs})")
    if any(p[task].hi > early for task in reach):
        why = f"whether processing in the first {early} layers suffices is unclear ({pairs})"
        return said("inconclusive", why)
    for mode, task in unclear:
        why = f"whether {mode} costs {task} as little as freezing is unclear"
        return said("inconclusive", f"{why} ({pairs})")
    for task in reach:
        if states[task][0] == "no control":
            return said("inconclusive", f"{task} was not tried with another picture")
        if states[task][0] == "unclear":
            why = f"whether another picture helps {task} as much is unclear"
            return said("inconclusive", why)
    for mode in spec["control_modes"]:
        if any((mode, task) not in shows for task in reach):
            return said("inconclusive", f"{mode} was not measured ({pairs})")
    if all(p[task].hi == 0 for task in reach):
        return said("supported", f"image tokens are read but need not be processed ({pairs})")
    until = max(p.values(), key=lambda depth: depth.hi)
    why = f"must process until depth {until} of {n_layers} at most, and read for longer ({pairs})"
    return said("supported", why)


def _details(
    spec: Spec,
    drawn: Resampled,
    states: dict[str, State],
    reach: dict[str, dict[str, Depth]],
    contrast: Interval,
) -> pd.DataFrame:
    """One row per part of the claim, for the reader."""
    rows: list[dict[str, Any]] = []
    for task, (label, gain, _) in states.items():
        rows.append(gain.row(f"{task}: gain by the picture", label, 0))
        if task not in reach:
            continue
        for what, verb in (("processes", "process"), ("reads", "read")):
            depth = reach[task][spec["modes"][what]]
            row = {"estimate": depth.value, "lo": depth.lo, "hi": depth.hi, "margin": NAN}
            rows.append({"measure": f"{task}: must {verb} until depth", "label": ""} | row)
        first = _depths(drawn, task, spec["modes"]["processes"])[0]
        for mode in spec["modes"].values():
            kept = drawn.bounded(lambda m, t=task, k=mode, d=first: _kept(m, t, k, d))
            least = 1 - spec["margins"]["loss"]["value"]
            rows.append(kept.row(f"{task}: kept, {mode} from depth {first} on", "", least))
    label = "positive" if contrast.lo > 0 else "not above 0"
    least = spec["margins"]["contrast"]["value"]
    rows.append(contrast.row("kept over depth: frozen minus removed", label, least))
    return pd.DataFrame(rows)
