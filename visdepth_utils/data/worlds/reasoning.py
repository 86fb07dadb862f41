"""The reasoning task: counting, comparing, spatial relations, each in three styles.

The same question is asked for a bare answer, a short reason, or all steps; references end in "so
the answer is X". Long chains go through the objects one by one with running counts, so that each
step is a look-up or a copy.
"""

from collections.abc import Callable

import numpy as np

from visdepth_utils.data.worlds.questions import Question, name_of, pick
from visdepth_utils.data.worlds.world import COLOURS, COLUMNS, ROWS, SHAPES, Scene

STYLES = ("direct", "short", "long")
STYLE_PROMPT = {
    "direct": ("answer directly .", "give only the answer ."),
    "short": ("think briefly , then answer .", "give a short reason , then answer ."),
    "long": (
        "think step by step , then answer .",
        "go through all objects step by step , then answer .",
    ),
}


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """(question, short chain, long chain, answer) of a counting question."""
    by = pick(rng, ("colour", "shape"))
    present = [getattr(t, by) for t in scene.things]
    names = tuple(COLOURS) if by == "colour" else SHAPES
    # Every count the scene has is as likely.
    wanted = pick(rng, tuple(sorted({present.count(n) for n in names})))
    exact = [n for n in names if present.count(n) == wanted]
    value = pick(rng, tuple(exact))
    noun = f"{value} objects" if by == "colour" else f"{value} shapes"
    hits = [t for t in scene.things if getattr(t, by) == value]
    steps, running = [], 0
    for t in scene.things:
        running += t in hits
        steps.append(f"{t.place} {name_of(t)} {'yes' if t in hits else 'no'} {running} .")
    short = " , ".join(name_of(t) for t in hits) if hits else "nothing"
    texts = ("how many {} are there ?", "count the {} .", "the picture shows how many {} ?")
    text = pick(rng, texts).format(noun)
    return text, f"{short} .", " ".join(steps), str(running)


def _compare(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Are there more X than Y? Balanced: the order of X and Y is a fair coin on unequal counts."""
    by = pick(rng, ("colour", "shape"))
    present = [getattr(t, by) for t in scene.things]
    names = sorted(tuple(COLOURS) if by == "colour" else SHAPES)
    pairs = [(a, b) for a in names for b in names if present.count(a) > present.count(b)]
    many = [p for p in pairs if present.count(p[1]) > 0]
    if many and rng.random() < 0.6:  # a pair in which both occur needs real counting
        pairs = many
    a, b = pairs[int(rng.integers(len(pairs)))]
    if rng.random() < 0.5:
        a, b = b, a
    ca = cb = 0
    steps = []
    for t in scene.things:
        ca += getattr(t, by) == a
        cb += getattr(t, by) == b
        steps.append(f"{t.place} {name_of(t)} {a} {ca} {b} {cb} .")
    answer = "yes" if ca > cb else "no"
    noun = "objects" if by == "colour" else "shapes"
    texts = (
        "are there more {0} {2} than {1} {2} ?",
        "more {0} {2} than {1} {2} ?",
        "do {0} {2} outnumber {1} {2} ?",
    )
    return pick(rng, texts).format(a, b, noun), f"{a} {ca} {b} {cb} .", " ".join(steps), answer


_RELATIONS = {
    "left of": ("column", -1),
    "right of": ("column", 1),
    "above": ("row", -1),
    "below": ("row", 1),
}


def _spatial(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Is X left of / right of / above / below Y? Balanced by choosing the truth value first."""
    relation = pick(rng, tuple(_RELATIONS))
    axis, sign = _RELATIONS[relation]
    order = COLUMNS if axis == "column" else ROWS
    rank = lambda t: order.index(getattr(t, axis))  # noqa: E731
    pairs = [(a, b) for a in scene.things for b in scene.things if a != b]
    want = bool(rng.random() < 0.5)
    holding = [(a, b) for a, b in pairs if ((rank(a) - rank(b)) * sign > 0) == want] or pairs
    a, b = holding[int(rng.integers(len(holding)))]
    difference = rank(a) - rank(b)
    answer = "yes" if difference * sign > 0 else "no"
    pa, pb = getattr(a, axis), getattr(b, axis)
    verb = "comes before" if difference < 0 else "comes after" if difference > 0 else "equals"
    # The relation asked about beside the one that holds: seeing whether they are the same is local.
    holds = [r for r, (x, s) in _RELATIONS.items() if x == axis and difference * s > 0]
    found = f"it is {holds[0]}" if holds else "it equals"
    step = f"{pa} {verb} {pb} . is it {relation} ? {found}"
    texts = (
        "is the {} {} the {} ?",
        "does the {} stand {} the {} ?",
        "tell if the {} is {} the {} .",
    )
    text = pick(rng, texts).format(name_of(a), relation, name_of(b))
    long = f"the {name_of(a)} is at {a.place} . the {name_of(b)} is at {b.place} . {step} ."
    return text, f"{pa} , {pb} .", long, answer


_REASONS: dict[str, Callable] = {"count": _count, "compare": _compare, "spatial": _spatial}


def reason(scene: Scene, rng: np.random.Generator, style: str | None = None) -> list[Question]:
    """One question in the styles asked for (all three by default): same question, same answer."""
    kind = pick(rng, tuple(_REASONS))
    text, short, long, answer = _REASONS[kind](scene, rng)
    end = f"so the answer is {answer} ."
    out = []
    for s in STYLES if style is None else (style,):
        reference = {"direct": answer, "short": f"{short} {end}", "long": f"{long} {end}"}[s]
        out.append(
            Question("reason", kind, f"{text} {pick(rng, STYLE_PROMPT[s])}", reference, answer, s)
        )
    return out
