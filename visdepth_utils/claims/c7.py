"""C7, longer reasoning makes up for less depth: the rule behind the entry in data/claims.yaml.

The questions come in this order: do both styles use the picture, does the longer one keep more of
what the picture brings, and does it help, harm or make no difference.
"""

from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.bootstrap import (
    Interval,
    Resampled,
    by_image_and,
    require,
    rule_thresholds,
    said,
)
from visdepth_utils.claims.once import once, only, values_of
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
    """Apply the rule of C7.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``truncation_sweep`` of the same questions in several styles, one below the other;
            with ``compute.with_token_layers`` the contrast at equal compute is reported as well.
        controls: ``"conditions"``: ``evaluate`` of the same samples without picture and with
            another one. Without it the floor is depth 0, and nothing is "supported".

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If a table lacks a column, or the conditions lack images of the sweep.
    """
    common = spec["common"]
    require(table, SWEEP | {"style", spec["score"]}, "table", "truncation_sweep")
    long, short = spec["styles"]["longer"], spec["styles"]["shorter"]
    sweep = _by_style(only(table, mode=spec["mode"]))
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    layers = 0 if sweep.empty else int(sweep["depth"].max())
    found["thresholds"] = rule_thresholds(spec, layers, "mode", "score", "styles")
    for style in (long, short):
        if style not in values_of(sweep, "task"):
            return found | said("not testable", f"table has no style {style!r} in this mode")
    depth = int(sweep["depth"].max())
    if depth < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {least}")
    if first := int(sweep["depth"].min()):
        return found | said("not testable", f"depths start at {first}: retention needs depth 0")
    both, frames = per_image(spec, table, controls)
    beside = [s for s in spec["styles"]["beside"] if s in frames]
    whole = both.dropna()
    found["n_images"] = n = len(whole)
    if n == 0 or n < (1 - common["max_missing_share"]) * len(both):
        why = f"{len(both) - n} of {len(both)} images have no value in both styles"
        return found | said("not testable", why)
    drawn = Resampled.of(whole, common)
    states, contrast = _parts(spec, drawn)
    gained = all(gain.lo > 0 for _, gain, _ in states.values())
    if gained:
        found |= {"effect": contrast.value, "ci": (contrast.lo, contrast.hi)}
    found["details"] = _details(spec, drawn, states, contrast, sweep, frames, beside)
    others = [o for _, _, o in states.values() if o is not None]
    found["controls"] = pd.DataFrame(another_picture(spec, states))
    if others:
        found["control_effect"] = max(o.value for o in others)
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    return found | _answer(spec, states, contrast)


def per_image(
    spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Scores per image of both styles side by side, gaps still in.

    Args:
        spec: As for ``decide``.
        table: As for ``decide``.
        controls: As for ``decide``.

    Returns:
        Columns ``"{style} full"``, ``area``, ``floor`` and what else was measured; and the same of
        every style that is there by itself.
    """
    sweep = _by_style(only(table, mode=spec["mode"]))
    given = {k: _by_style(v) for k, v in controls.items() if k == "conditions"}
    long, short = spec["styles"]["longer"], spec["styles"]["shorter"]
    beside = [s for s in spec["styles"]["beside"] if s in values_of(sweep, "task")]
    frames = columns_of({**spec, "floor": "blind"}, sweep, given, [long, short, *beside])
    return pd.concat([frames[s].add_prefix(f"{s} ") for s in (long, short)], axis=1), frames


def power_verdict(spec: Spec, whole: pd.DataFrame) -> str:
    """The word that the rule says of images whose scores are known.

    Args:
        spec: As for ``decide``.
        whole: Of ``per_image``, without gaps.

    Returns:
        The verdict.
    """
    return _answer(spec, *_parts(spec, Resampled.of(whole, spec["common"])))["verdict"]


def _parts(spec: Spec, drawn: Resampled) -> tuple[dict[str, State], Interval]:
    """Whether each style uses the picture, and what the longer one keeps more."""
    long, short = spec["styles"]["longer"], spec["styles"]["shorter"]
    states = {style: usable(spec, drawn, style) for style in (long, short)}
    return states, drawn.bounded(lambda m: share_kept(m, [long]) - share_kept(m, [short]))


@once
def _by_style(table: pd.DataFrame) -> pd.DataFrame:
    """A style is treated as a task of its own."""
    return table.assign(task=table["style"])


def _answer(spec: Spec, states: dict[str, State], contrast: Interval) -> dict[str, str]:
    """The verdict, if both styles use the picture."""
    skipped = [f"{style} {s[0]}" for style, s in states.items() if s[0].startswith("skipped")]
    if skipped:
        return said("not testable", f"the model cannot do it ({'; '.join(skipped)})")
    least = spec["margins"]["contrast"]["value"]
    long, short = (f"{spec['styles'][name]} answers" for name in ("longer", "shorter"))
    if contrast.hi < 0:
        return said("not supported", f"{long} lose more of the gain than {short}, not less")
    if contrast.below(least):
        why = "makes no difference" if contrast.low > -least else "does not help"
        return said("not supported", f"longer reasoning {why}: {contrast.value:+.2f} of the gain")
    if not contrast.lo > 0:
        return said("inconclusive", "intervals too wide to tell whether longer reasoning helps")
    for style, (label, _, _) in states.items():
        if label == "no control":
            return said("inconclusive", f"{style} was not tried with another picture")
        if label == "unclear":
            return said("inconclusive", f"whether another picture helps {style} is unclear")
    return said("supported", f"{long} keep more of what the picture brings than {short}")


def _details(
    spec: Spec,
    drawn: Resampled,
    states: dict[str, State],
    contrast: Interval,
    sweep: pd.DataFrame,
    frames: dict[str, pd.DataFrame],
    beside: list[str],
) -> pd.DataFrame:
    """One row per part of the claim, for the reader."""
    rows = []
    for style, (label, gain, _) in states.items():
        score = drawn.bounded(lambda m, s=style: m[f"{s} full"])
        rows.append(score.row(f"{style}: score of the whole model"))
        rows.append(gain.row(f"{style}: gain by the picture", label, 0))
        kept = drawn.bounded(lambda m, s=style: share_kept(m, [s]))
        rows.append(kept.row(f"{style}: kept, mean over depth"))
        mean = drawn.bounded(lambda m, s=style: m[f"{s} area"])
        rows.append(mean.row(f"{style}: score, mean over depth"))
    long, short = spec["styles"]["longer"], spec["styles"]["shorter"]
    label = "positive" if contrast.lo > 0 else "not above 0"
    least = spec["margins"]["contrast"]["value"]
    rows.append(contrast.row(f"kept: {long} minus {short}", label, least))
    for style in beside:
        own = Resampled.of(frames[style].dropna().add_prefix(f"{style} "), spec["common"])
        kept = own.bounded(lambda m, s=style: share_kept(m, [s]))
        rows.append(kept.row(f"{style}: kept, mean over depth", "beside"))
    if "token_layers" in sweep:
        rows.append(_equal_compute(spec, sweep))
    return pd.DataFrame(rows)


def _equal_compute(spec: Spec, sweep: pd.DataFrame) -> dict[str, Any]:
    """Score of the longer style where it costs no more than the shorter one's whole model."""
    long, short = spec["styles"]["longer"], spec["styles"]["shorter"]
    last = sweep["depth"].max()
    cost = sweep.groupby(["task", "depth"])["token_layers"].mean()
    within = cost[long][cost[long] <= cost[short][last]]
    if within.empty:
        none = Interval(NAN, NAN, NAN, NAN, NAN)
        return none.row(f"{long} costs more than {short} at every depth", "reported only")
    cut = int(within.index.max())
    scores = {
        "a": by_image_and(only(sweep, task=long), ["depth"], spec["score"])[cut],
        "b": by_image_and(only(sweep, task=short), ["depth"], spec["score"])[last],
    }
    drawn = Resampled.of(pd.DataFrame(scores).dropna(), spec["common"])
    found = drawn.bounded(lambda m: m["a"] - m["b"])
    name = f"equal compute: {long} at depth {cut} minus {short} at depth {int(last)}, score"
    return found.row(name, "reported only", np.nan)
