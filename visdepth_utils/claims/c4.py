"""C4, truncation is task-dependent: the rule of the entry in data/claims.yaml.

The questions come in this order: does the model use the image, do single-token answers keep more
of what the image brings than generated text does, and does a token of the text by itself lose more.
"""

from typing import Any

import pandas as pd

from visdepth_utils.claims.bootstrap import (
    Interval,
    Resampled,
    no_more,
    require,
    rule_thresholds,
    said,
)
from visdepth_utils.claims.once import only, values_of
from visdepth_utils.claims.retention import (
    SWEEP,
    Spec,
    State,
    another_picture,
    columns_of,
    share_kept,
    usable,
)

NAN = float("nan")


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C4.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``truncation_sweep`` of all tasks, one below the other.
        controls: ``"conditions"``: ``evaluate`` without picture and with another one;
            ``"token_kl"``: ``token_kl`` of the same samples. Without the first the score without
            picture is that of depth 0, and nothing is "supported" without both.

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If a table lacks a column, or another table lacks images of the sweep.
    """
    common = spec["common"]
    require(table, SWEEP | {spec["score"]}, "table", "truncation_sweep")
    sweep = only(table, mode=spec["mode"])
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    if sweep.empty:
        found["thresholds"] = rule_thresholds(spec, 0, "mode", "score", "floor", "tasks")
        return found | said("not testable", f"table has no rows of mode {spec['mode']!r}")
    depth = int(sweep["depth"].max())
    found["thresholds"] = rule_thresholds(spec, depth, "mode", "score", "floor", "tasks")
    needed = spec["tasks"]["single"] + spec["tasks"]["multi"]
    for task in needed:
        if task not in values_of(sweep, "task"):
            return found | said("not testable", f"table has no task {task!r} in this mode")
    if depth < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {least}")
    if first := int(sweep["depth"].min()):
        return found | said("not testable", f"depths start at {first}: retention needs depth 0")
    beside = [task for task in spec["tasks"]["beside"] if task in values_of(sweep, "task")]
    frames = columns_of(spec, sweep, controls, needed + beside)
    whole = {task: frame.dropna() for task, frame in frames.items()}
    found["n_images"] = n = min(len(whole[task]) for task in needed)
    for task in needed:
        asked, have = len(frames[task]), len(whole[task])
        if have == 0 or have < (1 - common["max_missing_share"]) * asked:
            why = f"{asked - have} of {asked} images of {task} have no value"
            return found | said("not testable", why)

    # What is reported beside may have other pictures, and must not touch what decides.
    drawn = _resampled(whole, needed, common)
    aside = {task: _resampled(whole, [task], common) for task in beside if len(whole[task])}
    draws = {**dict.fromkeys(needed, drawn), **aside}
    states = {task: usable(spec, own, task) for task, own in draws.items()}
    used = {
        group: [t for t in spec["tasks"][group] if not states[t][0].startswith("skipped")]
        for group in ("single", "multi")
    }
    contrast, tokens = None, "no task to compare"
    if used["single"] and used["multi"]:
        contrast = drawn.bounded(
            lambda m: share_kept(m, used["single"]) - share_kept(m, used["multi"])
        )
        tokens = _tokens(spec, drawn, whole, used)
        found |= {"effect": contrast.value, "ci": (contrast.lo, contrast.hi)}
    found["details"] = _details(spec, draws, states, contrast, tokens)
    rivals = another_picture(spec, {task: states[task] for task in needed})
    found["controls"] = pd.DataFrame(rivals)
    if len(found["controls"]):
        found["control_effect"] = float(found["controls"]["effect"].max())
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if contrast is None:
        why = "; ".join(f"{t} {states[t][0]}" for t in needed if states[t][0].startswith("skipped"))
        return found | said("not testable", f"the model cannot do it ({why})")
    answer = _pattern(contrast, spec) or _attribution(states, used, tokens)
    return found | answer


def _resampled(frames: dict[str, pd.DataFrame], tasks: list[str], common: Spec) -> Resampled:
    """All tasks side by side under the same resamples: those of one image move together."""
    return Resampled.of(
        pd.concat([frames[task].add_prefix(f"{task} ") for task in tasks], axis=1), common
    )


def _kept(drawn: Resampled, task: str, column: str = "area") -> Interval:
    return drawn.bounded(lambda m: share_kept(m, [task], column))


def _tokens(
    spec: Spec, drawn: Resampled, whole: dict[str, pd.DataFrame], used: dict[str, list[str]]
) -> Interval | str:
    """Loss per answer token, text minus single tokens; or why it cannot be told."""
    own, tasks = spec["per_token"], used["single"] + used["multi"]
    below = "kl blind" if own["scale"] == "share of depth 0" else "kl tokens"
    if any(f"{task} {below}" not in drawn.means for task in tasks):
        return "no divergence per token was given (token_kl)"
    for task in tasks:
        images = int((whole[task]["kl tokens"] > 0).sum())
        if images < own["images"]:
            return f"of {task}, {images} images have a token that the image moves"
        at_0 = drawn.bounded(lambda m, t=task: m[f"{t} {below}"] / m[f"{t} kl tokens"])
        if below == "kl blind" and not at_0.low >= own["reads"]:
            return f"a token of {task} loses only {at_0.value:.3f} nats without the image"

    def mean(m: dict[str, Any], tasks: list[str]) -> Any:
        return sum(m[f"{t} kl"] / m[f"{t} {below}"] for t in tasks) / len(tasks)

    return drawn.bounded(lambda m: mean(m, used["multi"]) - mean(m, used["single"]))


def _pattern(contrast: Interval, spec: Spec) -> dict[str, str] | None:
    """A verdict where single-token answers do not keep more; None where they do."""
    least = spec["margins"]["contrast"]["value"]
    if contrast.value <= 0:
        keep = "less" if contrast.hi < 0 else "no more"
        why = f"single-token answers keep {keep} of the gain than text does"
        return said("not supported", why)
    if contrast.below(least):
        return said(
            "not supported", f"single-token answers keep less than {least:g} more than text"
        )
    if not contrast.lo > 0:
        return said("inconclusive", "intervals too wide to tell whether the tasks differ")
    return None


def _attribution(
    states: dict[str, State],
    used: dict[str, list[str]],
    tokens: Interval | str,
) -> dict[str, str]:
    """The tasks differ: is it the image, and does a token by itself lose more?"""
    there = "single-token answers keep more of the gain, but"
    for task in used["single"] + used["multi"]:
        if states[task][0] == "no control":
            return said("inconclusive", f"{there} {task} was not tried with another picture")
        if states[task][0] == "unclear":
            why = f"whether another picture helps {task} as much is unclear"
            return said("inconclusive", f"{there} {why}")
    if isinstance(tokens, str):
        return said("inconclusive", f"{there} {tokens}")
    if not tokens.lo > 0:
        harder = no_more(tokens.hi, "hit harder", "hit less")
        why = f"{there} a token of text is {harder} than a single-token answer"
        return said("weaker", f"{why}: errors that add up over length may be all there is")
    return said(
        "supported",
        "single-token answers keep more of what the picture brings, and a token of a text is hit "
        "harder than theirs",
    )


def _details(
    spec: Spec,
    draws: dict[str, Resampled],
    states: dict[str, State],
    contrast: Interval | None,
    tokens: Interval | str,
) -> pd.DataFrame:
    """One row per part of the claim, for the reader."""
    rows = []
    kind = "content token" if spec["per_token"]["tokens"] == "content" else "token"
    for task, (label, gain, _) in states.items():
        own = draws[task]
        aside = "beside; " if task in spec["tasks"]["beside"] else ""
        rows.append(gain.row(f"{task}: gain by the picture", aside + label, 0))
        if not label.startswith("skipped"):
            rows.append(_kept(own, task).row(f"{task}: kept, mean over depth"))
            rows.append(_kept(own, task, "half").row(f"{task}: kept at half the depth"))
        for below, unit in (("kl tokens", "nats"), ("kl blind", "share of depth 0")):
            if f"{task} {below}" in own.means:
                lost = own.bounded(lambda m, t=task, b=below: m[f"{t} kl"] / m[f"{t} {b}"])
                rows.append(lost.row(f"{task}: divergence per {kind}, {unit}"))
    if contrast is not None:
        label = "positive" if contrast.lo > 0 else "not above 0"
        least = spec["margins"]["contrast"]["value"]
        rows.append(contrast.row("kept: single-token minus text", label, least))
    if isinstance(tokens, Interval):
        label = "positive" if tokens.lo > 0 else "not above 0"
        what = f"divergence per {kind}, {spec['per_token']['scale']}"
        rows.append(tokens.row(f"{what}: text minus single-token", label, 0))
    return pd.DataFrame(rows)
