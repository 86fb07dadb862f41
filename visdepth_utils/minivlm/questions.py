"""The five tasks on a pictured world: prompts in several phrasings, exact references.

Every function draws from a `numpy` generator, so a question is determined by scene and seed. The
words used
here are the whole vocabulary of the embedded models (`vocabulary`). No question is answerable above
chance without the picture: colours, shapes, places and values are independent and uniform, options
are shuffled,
yes/no questions are balanced by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from visdepth_utils.minivlm.world import COLOURS, COLUMNS, ROWS, SHAPES, Scene, Thing

STYLES = ("direct", "short", "long")
STYLE_PROMPT = {
    "direct": ("answer directly .", "give only the answer ."),
    "short": ("think briefly , then answer .", "give a short reason , then answer ."),
    "long": (
        "think step by step , then answer .",
        "go through all objects step by step , then answer .",
    ),
}
LETTERS = ("A", "B", "C", "D")
PLACES = tuple(f"{r} {c}" for r in ROWS for c in COLUMNS)


@dataclass(frozen=True)
class Question:
    """One question with its expected text and the short answer that is scored."""

    task: str
    kind: str
    prompt: str
    reference: str
    answer: str
    style: str = "direct"
    choices: tuple[str, ...] = ()


def _pick(rng: np.random.Generator, options: tuple) -> Any:
    return options[int(rng.integers(len(options)))]


def _name(t: Thing) -> str:
    return f"{t.colour} {t.shape}"


def caption(scene: Scene, rng: np.random.Generator) -> Question:
    """All objects in reading order, 20-60 tokens; the place comes first, as in a search."""
    prompt = _pick(
        rng,
        (
            "describe the picture .",
            "what is in the picture ?",
            "list all objects in reading order .",
        ),
    )
    parts = [f"at the {t.place} a {t.size} {_name(t)}" for t in scene.things]
    text = "the picture shows " + " , ".join(parts) + " ."
    return Question("caption", "caption", prompt, text, text)


def _lookup(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """A one-hop question: (kind, question text, what is asked about, answer)."""
    things = scene.things
    shapes, colours = [t.shape for t in things], [t.colour for t in things]
    options: list[tuple[str, Thing]] = []
    for t in things:
        options += [("where", t), ("what", t)]
        options += [("colour", t)] if shapes.count(t.shape) == 1 else []
        options += [("shape", t)] if colours.count(t.colour) == 1 else []
    kind = _pick(rng, tuple(sorted({k for k, _ in options})))
    t = _pick(rng, tuple(t for k, t in options if k == kind))
    texts, key, answer = {
        "colour": (_COLOUR_TEXTS, t.shape, t.colour),
        "shape": (_SHAPE_TEXTS, t.colour, t.shape),
        "where": (_WHERE_TEXTS, _name(t), t.place),
        "what": (_WHAT_TEXTS, t.place, _name(t)),
    }[kind]
    return kind, _pick(rng, texts).format(key), key, answer


# What is asked about comes last, so that it is always found at the same distance from the answer.
_COLOUR_TEXTS = (
    "what colour is the {} ?",
    "which colour has the {} ?",
    "tell the colour of the {} .",
)
_SHAPE_TEXTS = (
    "what shape is the object in {} ?",
    "which shape has the object in {} ?",
    "tell the shape of the object in {} .",
)
_WHERE_TEXTS = ("where is the {} ?", "in which place is the {} ?", "tell the place of the {} .")
_WHAT_TEXTS = (
    "what is at the {} ?",
    "which object is at the {} ?",
    "tell the object at the {} .",
)


def vqa(scene: Scene, rng: np.random.Generator) -> Question:
    """One or two words."""
    kind, text, _, answer = _lookup(scene, rng)
    return Question("vqa", kind, text, answer, answer)


def say(scene: Scene, rng: np.random.Generator) -> Question:
    """A look-up that repeats what is asked about before the answer: used in training only.

    From the repeated word to the answer it is one step of attention, which is learnt soon; a bare
    answer needs that step and one more, and hardly starts without it.
    """
    if scene.kind == "charts":
        q = chart(scene, rng)
        colour = next(w for w in q.prompt.split() if w in COLOURS)
        text, kind, both = q.prompt, q.kind, f"{colour} {q.answer}"
    else:
        kind, text, key, answer = _lookup(scene, rng)
        both = f"{key} {answer}"
    return Question("say", kind, f"{text} tell the object , then answer .", both, both)


def mcq(scene: Scene, rng: np.random.Generator) -> Question:
    """Which of four is in the picture? Options in random order, one letter.

    The wrong options are as likely as the right one without the picture: same kind, drawn
    uniformly from what the picture does not show.
    """
    facts = {
        "object": (lambda t: _name(t), [f"{c} {s}" for c in COLOURS for s in SHAPES]),
        "shape": (
            lambda t: f"{t.shape} at {t.place}",
            [f"{s} at {p}" for s in SHAPES for p in PLACES],
        ),
        "colour": (
            lambda t: f"{t.colour} at {t.place}",
            [f"{c} at {p}" for c in COLOURS for p in PLACES],
        ),
    }
    kind = _pick(rng, tuple(facts))
    tell, possible = facts[kind]
    true = [tell(t) for t in scene.things]
    answer = _pick(rng, tuple(true))
    others = [o for o in possible if o not in true]
    options = [answer] + [others[int(i)] for i in rng.permutation(len(others))[:3]]
    order = [int(i) for i in rng.permutation(4)]
    choices = tuple(options[i] for i in order)
    letter = LETTERS[order.index(0)]
    texts = (
        "what is in the picture ?",
        "which of the objects is in the picture ?",
        "what has the picture ?",
    )
    tail = _pick(
        rng, ("answer with the letter .", "give only the letter .", "which letter is right ?")
    )
    listed = " ".join(f"{a} : {c}" for a, c in zip(LETTERS, choices, strict=True))
    prompt = f"{_pick(rng, texts)} {listed} . {tail}"
    return Question("mcq", kind, prompt, letter, letter, choices=choices)


def chart(scene: Scene, rng: np.random.Generator) -> Question:
    """Read one bar's value, 0-99."""
    bar = scene.bars[int(rng.integers(len(scene.bars)))]
    texts = (
        "what is the value of the bar in {} ?",
        "how high is the bar in {} ?",
        "tell the value of the bar in {} .",
    )
    return Question(
        "chart", "value", _pick(rng, texts).format(bar.colour), str(bar.value), str(bar.value)
    )


def chart_list(scene: Scene, rng: np.random.Generator) -> Question:
    """All bars left to right: used in training only, for supervision of every bar."""
    text = " , ".join(f"{b.colour} {b.value}" for b in scene.bars)
    prompt = _pick(rng, ("list all bars from left to right .", "read the chart ."))
    return Question("chart_list", "list", prompt, text, text)


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """(question, short chain, long chain, answer) of a counting question."""
    by = _pick(rng, ("colour", "shape"))
    present = [getattr(t, by) for t in scene.things]
    names = tuple(COLOURS) if by == "colour" else SHAPES
    wanted = _pick(
        rng, tuple(sorted({present.count(n) for n in names}))
    )  # every count the scene has is as likely
    exact = [n for n in names if present.count(n) == wanted]
    value = _pick(rng, tuple(exact))
    noun = f"{value} objects" if by == "colour" else f"{value} shapes"
    hits = [t for t in scene.things if getattr(t, by) == value]
    steps, running = [], 0
    for t in scene.things:
        running += t in hits
        steps.append(f"{t.place} {_name(t)} : {'yes' if t in hits else 'no'} , {running} .")
    short = " , ".join(_name(t) for t in hits) if hits else "nothing"
    text = _pick(
        rng, ("how many {} are there ?", "count the {} .", "the picture shows how many {} ?")
    ).format(noun)
    return text, f"{short} .", " ".join(steps), str(running)


def _compare(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Are there more X than Y? Balanced: the order of X and Y is a fair coin on unequal counts."""
    by = _pick(rng, ("colour", "shape"))
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
        steps.append(f"{t.place} {_name(t)} : {a} {ca} , {b} {cb} .")
    answer = "yes" if ca > cb else "no"
    noun = "objects" if by == "colour" else "shapes"
    texts = (
        "are there more {0} {2} than {1} {2} ?",
        "more {0} {2} than {1} {2} ?",
        "do {0} {2} outnumber {1} {2} ?",
    )
    return _pick(rng, texts).format(a, b, noun), f"{a} {ca} , {b} {cb} .", " ".join(steps), answer


_RELATIONS = {
    "left of": ("column", -1),
    "right of": ("column", 1),
    "above": ("row", -1),
    "below": ("row", 1),
}


def _spatial(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Is X left of / right of / above / below Y? Balanced by choosing the truth value first."""
    relation = _pick(rng, tuple(_RELATIONS))
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
    texts = (
        "is the {} {} the {} ?",
        "does the {} stand {} the {} ?",
        "tell if the {} is {} the {} .",
    )
    text = _pick(rng, texts).format(_name(a), relation, _name(b))
    long = f"the {_name(a)} is at {a.place} . the {_name(b)} is at {b.place} . {pa} {verb} {pb} ."
    return text, f"{pa} , {pb} .", long, answer


_REASONS: dict[str, Callable] = {"count": _count, "compare": _compare, "spatial": _spatial}


def reason(scene: Scene, rng: np.random.Generator, style: str | None = None) -> list[Question]:
    """One question in the styles asked for (all three by default): same question, same answer."""
    kind = _pick(rng, tuple(_REASONS))
    text, short, long, answer = _REASONS[kind](scene, rng)
    end = f"so the answer is {answer} ."
    out = []
    for s in STYLES if style is None else (style,):
        reference = {"direct": answer, "short": f"{short} {end}", "long": f"{long} {end}"}[s]
        out.append(
            Question("reason", kind, f"{text} {_pick(rng, STYLE_PROMPT[s])}", reference, answer, s)
        )
    return out


def describe(scene: Scene) -> str:
    """The scene in words: what stands where the picture would, in text-only training."""
    if scene.kind == "charts":
        return "chart : " + " ; ".join(f"{b.colour} bar {b.value}" for b in scene.bars) + " ."
    return "objects : " + " ; ".join(f"{t.place} {t.size} {_name(t)}" for t in scene.things) + " ."


def vocabulary(n_scenes: int = 3000) -> list[str]:
    """All words of worlds and questions, sorted, without numbers (they are spelt by digits)."""
    from visdepth_utils.minivlm.world import draw_scene

    words: set[str] = set()
    for seed in range(n_scenes):
        for kind, makers in (("shapes", (caption, vqa, mcq)), ("charts", (chart, chart_list))):
            scene, rng = draw_scene(seed, kind), np.random.default_rng(seed)
            questions = [make(scene, rng) for make in makers]
            questions += reason(scene, rng) if kind == "shapes" else []
            for q in questions:
                words.update((q.prompt + " " + q.reference + " " + describe(scene)).split())
    return sorted(w for w in words if not w.isdigit())
