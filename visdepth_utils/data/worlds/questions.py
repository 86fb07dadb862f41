"""The five tasks on a pictured world: prompts in several phrasings, exact references.

Every function draws from a `numpy` generator, so a question is determined by scene and seed. The
words used here are the whole vocabulary of the embedded models (`vocabulary`). No question is
answerable above chance without the picture: colours, shapes, places and values are independent and
uniform, options are shuffled, yes/no questions are balanced by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from visdepth_utils.data.worlds.world import COLOURS, COLUMNS, ROWS, SHAPES, Scene, Thing

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


def pick(rng: np.random.Generator, options: tuple) -> Any:
    """One of the options, uniformly."""
    return options[int(rng.integers(len(options)))]


def name_of(t: Thing) -> str:
    """Colour and shape, which name one object of a scene."""
    return f"{t.colour} {t.shape}"


def caption(scene: Scene, rng: np.random.Generator) -> Question:
    """All objects in reading order, 20-60 tokens; the place comes first, as in a search."""
    prompt = pick(
        rng,
        (
            "describe the picture .",
            "what is in the picture ?",
            "list all objects in reading order .",
        ),
    )
    parts = [f"at the {t.place} a {t.size} {name_of(t)}" for t in scene.things]
    text = "the picture shows " + " , ".join(parts) + " ."
    return Question("caption", "caption", prompt, text, text)


def lookup(scene: Scene, rng: np.random.Generator) -> tuple[str, str, str, str]:
    """A one-hop question: (kind, question text, what is asked about, answer)."""
    things = scene.things
    shapes, colours = [t.shape for t in things], [t.colour for t in things]
    options: list[tuple[str, Thing]] = []
    for t in things:
        options += [("where", t), ("what", t)]
        options += [("colour", t)] if shapes.count(t.shape) == 1 else []
        options += [("shape", t)] if colours.count(t.colour) == 1 else []
    kind = pick(rng, tuple(sorted({k for k, _ in options})))
    t = pick(rng, tuple(t for k, t in options if k == kind))
    texts, key, answer = {
        "colour": (_COLOUR_TEXTS, t.shape, t.colour),
        "shape": (_SHAPE_TEXTS, t.colour, t.shape),
        "where": (_WHERE_TEXTS, name_of(t), t.place),
        "what": (_WHAT_TEXTS, t.place, name_of(t)),
    }[kind]
    return kind, pick(rng, texts).format(key), key, answer


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
_WHAT_TEXTS = ("what is at the {} ?", "which object is at the {} ?", "tell the object at the {} .")


def vqa(scene: Scene, rng: np.random.Generator) -> Question:
    """One or two words."""
    kind, text, _, answer = lookup(scene, rng)
    return Question("vqa", kind, text, answer, answer)


# What an option of a multiple choice names: the values the picture shows, and all there are.
FACTS: dict[str, tuple[Callable[[Thing], str], tuple[str, ...]]] = {
    "colour": (lambda t: t.colour, tuple(COLOURS)),
    "shape": (lambda t: t.shape, SHAPES),
    "place": (lambda t: t.place, PLACES),
}


def mcq(scene: Scene, rng: np.random.Generator) -> Question:
    """Which of four is in the picture? Options in random order, one letter.

    The wrong options are as likely as the right one without the picture: same kind, drawn uniformly
    from what the picture does not show. A kind needs three values that the picture does not show.
    """
    absent = {
        kind: [o for o in possible if o not in {tell(t) for t in scene.things}]
        for kind, (tell, possible) in FACTS.items()
    }
    kind = pick(rng, tuple(k for k, others in absent.items() if len(others) >= 3))
    answer = pick(rng, tuple(sorted({FACTS[kind][0](t) for t in scene.things})))
    others = absent[kind]
    options = [answer] + [others[int(i)] for i in rng.permutation(len(others))[:3]]
    order = [int(i) for i in rng.permutation(4)]
    choices = tuple(options[i] for i in order)
    letter = LETTERS[order.index(0)]
    texts = (
        "which {} is in the picture ?",
        "which {} does the picture show ?",
        "pick the letter of the {} that is in the picture .",
    )
    listed = " , ".join(f"{a} {c}" for a, c in zip(LETTERS, choices, strict=True))
    prompt = f"{pick(rng, texts).format(_MCQ_NOUNS[kind])} {listed} ."
    return Question("mcq", kind, prompt, letter, letter, choices=choices)


_MCQ_NOUNS = {"colour": "colour", "shape": "shape", "place": "place of an object"}


def chart(scene: Scene, rng: np.random.Generator) -> Question:
    """Read one bar's value, 0-99."""
    bar = scene.bars[int(rng.integers(len(scene.bars)))]
    texts = (
        "what is the value of the bar in {} ?",
        "how high is the bar in {} ?",
        "tell the value of the bar in {} .",
    )
    return Question(
        "chart", "value", pick(rng, texts).format(bar.colour), str(bar.value), str(bar.value)
    )
