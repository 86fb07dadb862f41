"""C5, chains move more than answers: the rule of the entry in data/claims.yaml.

The questions come in this order: do chain and answer depend on the image at all, does the chain
move further on the scales on which both can be compared, do the scales agree, is that more than any
small change of the image does, and is a token of the chain hit harder than the answer's.
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
from visdepth_utils.claims.once import once, only, values_of

Spec = dict[str, Any]
NAN = float("nan")
NEEDED = {
    "sample",
    "image",
    "kind",
    "mode",
    "depth",
    "control",
    "correct",
    "ends",
    "edit",
    "flip",
    "flip_chance",
    "changed_chain",
    "changed_answer",
    "answer_kept",
    "kl_chain",
    "kl_answer",
}
CONTROLS = ("run again", "one pixel", "another picture")
TOKENS = ("changed_chain", "changed_answer", "kl_chain", "kl_answer")
SCALES = {  # name -> whose distance a distance is divided by, and whether chance is taken out
    "depth 0": (0, False),
    "another picture": ("another picture", True),
    "depth 0 over chance": (0, True),
    "unrelated outputs": (None, True),
}


def decide(spec: Spec, table: pd.DataFrame, controls: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Apply the rule of C5.

    Args:
        spec: Entry of claims.yaml with ``common`` merged in.
        table: ``chains.compare`` of a ``reasoning_sweep`` over the whole set of samples; the
            controls are among its rows.
        controls: Not used.

    Returns:
        Fields of ``Verdict`` except claim, statement, model and notebook.

    Raises:
        ValueError: If the table lacks a column.
    """
    common, margins = spec["common"], spec["margins"]
    chain = spec["chain"]
    source = "chains.compare of a table with questions"
    require(table, NEEDED | {chain, f"{chain}_chance"}, "table", source)
    rows = only(table, mode=spec["mode"])
    if spec["kinds"]:
        rows = only(rows, kind=spec["kinds"])
    found: dict[str, Any] = {"effect": NAN, "ci": (NAN, NAN), "control_effect": NAN, "n_images": 0}
    layers = 0 if rows.empty else int(rows["depth"].max())
    found["thresholds"] = rule_thresholds(spec, layers, "mode", "chain", "scales", "kinds")
    if rows.empty:
        return found | said("not testable", f"table has no rows of mode {spec['mode']!r}")
    depth = int(rows["depth"].max())
    if depth < common["min_layers"]:
        least = common["min_layers"]
        return found | said("not testable", f"{depth} decoder layers; it takes at least {least}")
    if first := int(rows["depth"].min()):
        return found | said("not testable", f"depths start at {first}: the area needs depth 0")
    full = rows[(rows["depth"] == depth) & (rows["control"] == "")]
    ends = float(full["ends"].mean())
    if ends < margins["ends"]["value"]:
        share = beside(100 * ends, 100 * margins["ends"]["value"], 0)
        why = f"the full model names a final answer in {share}% of its outputs only"
        return found | said("not testable", why)
    scales = [s for s in spec["scales"] if SCALES[s][0] in {0, None, *values_of(rows, "control")}]
    if not scales:
        return found | said("not testable", f"table has no rows for scale {spec['scales'][0]!r}")
    asked = _per_image(rows, chain)
    whole = asked.dropna(subset=[c for c in asked if "|" in c])
    found["n_images"] = n = len(whole)
    if n == 0 or n < (1 - common["max_missing_share"]) * len(asked):
        why = f"{len(asked) - n} of {len(asked)} images have no value"
        return found | said("not testable", why)
    drawn = Resampled.of(whole, common)
    depths = sorted({int(d) for d in rows["depth"]})
    effects = {s: drawn.bounded(lambda m, s=s: _effect(m, chain, depths, s)) for s in scales}
    effect = effects[scales[0]]
    tokens = None
    if whole["changed_chain"].notna().any() and whole["changed_answer"].notna().any():
        tokens = drawn.bounded(lambda m: m["changed_chain"] - m["changed_answer"])
    found |= {"effect": effect.value, "ci": (effect.lo, effect.hi)}
    there = [name for name in ("one pixel",) if f"{chain}|{name}" in whole]
    contrasts = {
        name: drawn.bounded(
            lambda m, name=name: (
                _effect(m, chain, depths, scales[0]) - _difference(m, chain, name, scales[0])
            )
        )
        for name in there
    }
    found["details"] = _details(spec, drawn, depths, effects, tokens, rows)
    found["controls"] = _controls(chain, scales[0], drawn, contrasts)
    if len(found["controls"]):
        found["control_effect"] = float(found["controls"]["effect"].max())
    if n < common["min_images"]:
        least = common["min_images"]
        return found | said("inconclusive", f"{n} images; the rule asks for at least {least}")
    if unread := _unread(spec, drawn):
        return found | said("not testable", unread)
    return found | (_pattern(spec, drawn, effects) or _attribution(contrasts, tokens))


@once
def _per_image(rows: pd.DataFrame, chain: str) -> pd.DataFrame:
    """One row per image: distances and chance as ``"edit|4"``, ``"edit_chance|one pixel"``, ...

    Token columns carry no bar: means over depths below the last.
    """
    depth = rows["depth"].max()
    plain = rows[rows["control"] == ""]
    parts = []
    for value in (chain, f"{chain}_chance", "flip", "flip_chance"):
        by_depth = by_image_and(plain, ["depth"], value)
        parts.append(by_depth.rename(columns=lambda d, v=value: f"{v}|{int(d)}"))
        if (rows["control"] != "").any():
            by_control = by_image_and(rows[rows["control"] != ""], ["control"], value)
            parts.append(by_control.rename(columns=lambda c, v=value: f"{v}|{c}"))
    below = plain[plain["depth"] < depth]
    for value in TOKENS:
        parts.append(below.groupby("image", sort=False)[value].mean().rename(value))
    return pd.concat(parts, axis=1).reindex(rows["image"].unique())


def _ratio(top: Any, below: Any) -> Any:
    """A distance over another; 0 where nothing changes, also if the other is 0 as well."""
    top, below = np.asarray(top), np.asarray(below)
    return np.where(top == 0, 0.0, top / np.where(below == 0, np.nan, below))


def _scaled(m: dict[str, Any], name: str, at: Any, scale: str = "unrelated outputs") -> Any:
    """Distance at a depth or under a control, in the units of a scale."""
    end, corrected = SCALES[scale]

    def far(where: Any) -> Any:
        own = m[f"{name}|{where}"]
        return _ratio(own, m[f"{name}_chance|{where}"]) if corrected else own

    return far(at) if end is None else _ratio(far(at), far(end))


def _area(m: dict[str, Any], name: str, depths: list[int], scale: str) -> Any:
    """Mean of the distance over d / L."""
    curve = np.stack([_scaled(m, name, d, scale) for d in depths], -1)
    return np.trapezoid(curve, np.array(depths) / depths[-1], axis=-1)


def _effect(m: dict[str, Any], chain: str, depths: list[int], scale: str) -> Any:
    """Chains minus answers, mean over depth."""
    return _area(m, chain, depths, scale) - _area(m, "flip", depths, scale)


def _difference(m: dict[str, Any], chain: str, control: str, scale: str) -> Any:
    """Chains minus answers under a control."""
    return _scaled(m, chain, control, scale) - _scaled(m, "flip", control, scale)


def _controls(
    chain: str, scale: str, drawn: Resampled, contrasts: dict[str, Interval]
) -> pd.DataFrame:
    """One row per control: its own difference, and the effect minus it."""
    rows = []
    for name, contrast in contrasts.items():
        own = drawn.bounded(lambda m, name=name: _difference(m, chain, name, scale))
        row = {"control": name, "shows it": as_much(own, contrast)}
        rows.append(
            row
            | {"effect": own.value, "contrast": contrast.value}
            | {"lo": contrast.lo, "hi": contrast.hi}
        )
    return pd.DataFrame(rows)


def _unread(spec: Spec, drawn: Resampled) -> str:
    """Why an end of a scale is missing: the image moves too little; empty if none is."""
    least = spec["margins"]["reads"]["value"]
    for at, how in (("another picture", "with another one"), (0, "without any")):
        for name, what in ((spec["chain"], "chains"), ("flip", "answers")):
            if f"{name}|{at}" not in drawn.means:
                continue
            far = drawn.bounded(lambda m, name=name, at=at: _scaled(m, name, at))
            if not far.low >= least:
                word = "hardly" if far.below(least) else "not beyond doubt"
                moves = f"{how} they move {beside(far.value, least)} of the way"
                return f"{what} {word} depend on the picture: {moves}"
    return ""


def _pattern(spec: Spec, drawn: Resampled, effects: dict[str, Interval]) -> dict[str, str] | None:
    """A verdict where chains do not move more, or not on every scale; None where they do."""
    margins, chain = spec["margins"], spec["chain"]
    again = f"{chain}|run again"
    if drawn.means.get(again, 0.0) > margins["self"]["value"]:
        why = f"two runs of the same model differ by {drawn.means[again]:.3f}"
        return said("inconclusive", why)
    lacking = [c for c in CONTROLS if f"{chain}|{c}" not in drawn.means]
    if lacking:
        return said("inconclusive", f"controls are missing: {', '.join(lacking)}")
    least = margins["difference"]["value"]
    (scale, effect), *others = effects.items()
    for other, there in others:
        signs = (effect.lo > 0 and there.hi < 0) or (effect.hi < 0 and there.lo > 0)
        if signs or {_outcome(effect, least)[0], _outcome(there, least)[0]} == {"more", "no more"}:
            numbers = f"{effect.value:.2f} over {scale}, {there.value:.2f} over {other}"
            return said("inconclusive", f"depends on the scale: chains minus answers is {numbers}")
    outcome, why = _outcome(effect, least)
    if outcome == "more":
        return None
    return said("not supported" if outcome == "no more" else "inconclusive", why)


def _outcome(effect: Interval, least: float) -> tuple[str, str]:
    """Whether chains move "more" or "no more" on a scale, or that is "unclear"; and why."""
    if effect.value <= 0:
        move = "less far" if effect.hi < 0 else "no further"
        return "no more", f"chains move {move} than answers, each over its own distance"
    if effect.below(least):
        return "no more", f"chains move less than {least:g} further than answers"
    if not effect.lo > 0:
        return "unclear", "intervals too wide to tell whether chains move further"
    return "more", ""


def _attribution(contrasts: dict[str, Interval], tokens: Interval | None) -> dict[str, str]:
    """Chains move further: is it the depth, and is it more than their length?"""
    there = "chains move further than answers, but"
    for name, contrast in contrasts.items():
        if not contrast.lo > 0:
            return said("weaker", f"{there} {no_more(contrast.hi)} than under: {name}")
    if tokens is None:
        return said("inconclusive", f"{there} nothing was measured token by token")
    if not tokens.lo > 0:
        harder = no_more(tokens.hi, "hit harder", "hit less")
        why = f"a chain token is {harder} than an answer token: slips adding up"
        return said("weaker", f"{there} {why} over the length of the chain explain it")
    return said(
        "supported",
        "chains move further than answers, and each token of a chain is hit harder than the "
        "answer's with the chain given",
    )


def _details(
    spec: Spec,
    drawn: Resampled,
    depths: list[int],
    effects: dict[str, Interval],
    tokens: Interval | None,
    rows: pd.DataFrame,
) -> pd.DataFrame:
    """One row per part of the claim, and the naive numbers beside them."""
    chain, margins, out = spec["chain"], spec["margins"], []
    sides, least = ((chain, "chains"), ("flip", "answers")), margins["difference"]["value"]
    for scale, effect in effects.items():
        for name, what in sides:
            area = drawn.bounded(lambda m, n=name, s=scale: _area(m, n, depths, s))
            out.append(area.row(f"{what}: distance over {scale}, mean over depth"))
        label = "positive" if effect.lo > 0 else "not above 0"
        out.append(effect.row(f"chains minus answers, over {scale}", label, least))
    for control in (0, *CONTROLS):
        for name, what in sides:
            if f"{name}|{control}" in drawn.means:
                far = drawn.bounded(lambda m, n=name, c=control: _scaled(m, n, c))
                where, label = (control, "control") if control else ("depth 0", "end of the scale")
                out.append(far.row(f"{what}: distance over chance, {where}", label))
    for name in TOKENS:
        what = "nats per token" if name.startswith("kl") else "tokens that change"
        side = "chain" if name.endswith("chain") else "answer"
        if np.isfinite(drawn.means[name]):
            own = drawn.bounded(lambda m, name=name: m[name])
            out.append(own.row(f"{side}: {what}, same text read"))
    if tokens is not None:
        label = "positive" if tokens.lo > 0 else "not above 0"
        out.append(tokens.row("tokens that change: chain minus answer", label, 0))
    below = rows[(rows["control"] == "") & (rows["depth"] < rows["depth"].max())]
    naive = {
        "naive: chains that change at all": (below["edit"] > 0).mean(),
        "naive: answers that change": below["flip"].mean(),
        "naive: answers that change, full chain given": 1 - below["answer_kept"].mean(),
    }
    for name, value in naive.items():
        out.append(Interval(float(value), NAN, NAN, NAN, NAN).row(name, "reported only"))
    return pd.DataFrame(out)
