"""C4, truncation is task-dependent: the rule behind the entry in data/claims.yaml.

The questions come in this order: does the model use the picture, do single-token answers keep more
of what the picture brings than generated text does, and is that more than length alone explains.
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
from visdepth_utils.claims.retention import (
    SWEEP,
    Spec,
    columns_of,
    compounding,
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
    sweep = table[table["mode"] == spec["mode"]]
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    if sweep.empty:
        found["thresholds"] = rule_thresholds(spec, 0, "mode", "score", "floor", "tasks")
        return found | said("not testable", f"table has no rows of mode {spec['mode']!r}")
    depth = int(sweep["depth"].max())
    found["thresholds"] = rule_thresholds(spec, depth, "mode", "score", "floor", "tasks")
    needed = spec["tasks"]["single"] + spec["tasks"]["multi"]
    for task in needed:
        if task not in set(sweep["task"]):
            return found | said("not testable", f"table has no task {task!r} in this mode")
    if depth < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {least}")
    if first := int(sweep["depth"].min()):
        return found | said("not testable", f"depths start at {first}: retention needs depth 0")
    beside = [task for task in spec["tasks"]["beside"] if task in set(sweep["task"])]
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
    contrast = tokens = None
    if used["single"] and used["multi"]:
        contrast = drawn.bounded(
            lambda m: share_kept(m, used["single"]) - share_kept(m, used["multi"])
        )
        tokens = _tokens(spec, drawn, used)
        found |= {"effect": contrast.value, "ci": (contrast.lo, contrast.hi)}
    expected = None
    if tokens is not None:
        rows = controls["token_kl"]
        rows = rows[rows["mode"] == spec["mode"]]
        expected = compounding(sweep, rows, used["single"], used["multi"])
    found["details"] = _details(spec, draws, states, contrast, tokens, expected)
    found["controls"] = _controls(spec, states)
    if len(found["controls"]):
        found["control_effect"] = float(found["controls"]["effect"].max())
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if contrast is None:
        why = "; ".join(f"{t} {states[t][0]}" for t in needed if states[t][0].startswith("skipped"))
        return found | said("not testable", f"the model cannot do it ({why})")
    answer = _pattern(contrast, spec) or _attribution(states, used, tokens, expected)
    return found | answer


def _resampled(frames: dict[str, pd.DataFrame], tasks: list[str], common: Spec) -> Resampled:
    """All tasks side by side under the same resamples: those of one image move together."""
    return Resampled.of(
        pd.concat([frames[task].add_prefix(f"{task} ") for task in tasks], axis=1), common
    )


def _kept(drawn: Resampled, task: str, column: str = "area") -> Interval:
    return drawn.bounded(lambda m: share_kept(m, [task], column))


def _tokens(spec: Spec, drawn: Resampled, used: dict[str, list[str]]) -> Interval | None:
    """Divergence per answer token, in nats or as a share of depth 0: text minus single tokens."""
    share = spec["per_token"]["scale"] == "share of depth 0"
    below = "kl blind" if share else "kl tokens"
    if any(f"{task} {below}" not in drawn.means for tasks in used.values() for task in tasks):
        return None

    def mean(m: dict[str, Any], tasks: list[str]) -> Any:
        return sum(m[f"{t} kl"] / m[f"{t} {below}"] for t in tasks) / len(tasks)

    return drawn.bounded(lambda m: mean(m, used["multi"]) - mean(m, used["single"]))


def _controls(spec: Spec, states: dict[str, tuple[str, Interval, Interval | None]]) -> pd.DataFrame:
    """One row per task: what another picture brings, as a share of what its own one does."""
    most, rows = spec["margins"]["other_share"]["value"], []
    for task, (_, _, other) in states.items():
        if other is not None and task not in spec["tasks"]["beside"]:
            shows = {True: "no", False: "yes", None: "unclear"}[other.below(most)]
            row = {"control": f"another picture ({task})", "shows it": shows}
            rows.append(row | {"effect": other.value, "lo": other.lo, "hi": other.hi})
    return pd.DataFrame(rows)


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
    states: dict[str, tuple[str, Interval, Interval | None]],
    used: dict[str, list[str]],
    tokens: Interval | None,
    expected: tuple[float, float] | None,
) -> dict[str, str]:
    """The tasks differ: is it the picture, and is it more than length?"""
    there = "single-token answers keep more of the gain, but"
    for task in used["single"] + used["multi"]:
        if states[task][0] == "no control":
            return said("inconclusive", f"{there} {task} was not tried with another picture")
        if states[task][0] == "unclear":
            why = f"whether another picture helps {task} as much is unclear"
            return said("inconclusive", f"{there} {why}")
    if tokens is None:
        return said("inconclusive", f"{there} no divergence per token was given (token_kl)")
    if not tokens.lo > 0:
        harder = no_more(tokens.hi, "hit harder", "hit less")
        why = f"{there} a token of text is {harder} than a single-token answer"
        part, seen = "may be all there is", ""
        if expected is not None:
            first, second = (f"{100 * share:.0f}%" for share in expected)
            seen = f" (of the texts {second} change; at the short answers' rate {first} would)"
            part = "are a part of it" if expected[1] > expected[0] else part
        return said("weaker", f"{why}: errors adding up over length {part}{seen}")
    return said(
        "supported",
        "single-token answers keep more of what the picture brings, and every token of a text is "
        "hit harder than theirs",
    )


def _details(
    spec: Spec,
    draws: dict[str, Resampled],
    states: dict[str, tuple[str, Interval, Interval | None]],
    contrast: Interval | None,
    tokens: Interval | None,
    expected: tuple[float, float] | None,
) -> pd.DataFrame:
    """One row per part of the claim, for the reader."""
    rows = []
    for task, (label, gain, _) in states.items():
        own = draws[task]
        aside = "beside; " if task in spec["tasks"]["beside"] else ""
        rows.append(gain.row(f"{task}: gain by the picture", aside + label, 0))
        if not label.startswith("skipped"):
            rows.append(_kept(own, task).row(f"{task}: kept, mean over depth"))
            rows.append(_kept(own, task, "half").row(f"{task}: kept at half the depth"))
        if f"{task} kl" in own.means:
            nats = own.bounded(lambda m, t=task: m[f"{t} kl"] / m[f"{t} kl tokens"])
            rows.append(nats.row(f"{task}: nats per token"))
        if f"{task} kl blind" in own.means:
            share = own.bounded(lambda m, t=task: m[f"{t} kl"] / m[f"{t} kl blind"])
            rows.append(share.row(f"{task}: nats per token, share of depth 0"))
    if contrast is not None:
        label = "positive" if contrast.lo > 0 else "not above 0"
        least = spec["margins"]["contrast"]["value"]
        rows.append(contrast.row("kept: single-token minus text", label, least))
    if tokens is not None:
        label = "positive" if tokens.lo > 0 else "not above 0"
        scale = spec["per_token"]["scale"]
        what = "nats per token" if scale == "nats" else f"nats per token, {scale}"
        rows.append(tokens.row(f"{what}: text minus single-token", label, 0))
    for name, share in zip(("expected from length alone", "seen"), expected or (), strict=False):
        only = Interval(share, NAN, NAN, NAN, NAN)
        rows.append(only.row(f"texts that change: {name}", "reported only"))
    return pd.DataFrame(rows)
