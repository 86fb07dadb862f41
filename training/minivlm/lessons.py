"""What only training asks for: questions that teach a step, scenes in words, labels of patches."""

from __future__ import annotations

import numpy as np

from visdepth_utils.data.worlds.questions import (
    FACTS,
    LETTERS,
    Question,
    chart,
    lookup,
    mcq,
    name_of,
    pick,
)
from visdepth_utils.data.worlds.world import (
    COLOURS,
    COLUMNS,
    ROWS,
    SHAPES,
    SIZE,
    SIZES,
    Scene,
    bar_columns,
)


def say(scene: Scene, rng: np.random.Generator) -> Question:
    """A question whose answer first repeats what it is about.

    From the repeated word to the answer it is one step of attention, which is learnt soon; a bare
    answer needs that step and one more, and hardly starts without it.
    """
    if scene.kind == "charts":
        q = chart(scene, rng)
        colour = next(w for w in q.prompt.split() if w in COLOURS)
        text, kind, both = q.prompt, q.kind, f"{colour} {q.answer}"
    elif rng.random() < 0.3:
        q = mcq(scene, rng)
        text, kind = q.prompt, f"mcq-{q.kind}"
        both = f"{q.choices[LETTERS.index(q.answer)]} {q.answer}"
    else:
        kind, text, key, answer = lookup(scene, rng)
        both = f"{key} {answer}"
    return Question("say", kind, f"{text} name it first .", both, both)


def exists(scene: Scene, rng: np.random.Generator) -> Question:
    """Is a colour, a shape, an object at a place in the picture?

    It is the step each option of a multiple choice needs. Yes and no are equally likely.
    """
    kind = pick(rng, tuple(FACTS))
    tell, possible = FACTS[kind]
    true = {tell(t) for t in scene.things}
    answer = pick(rng, ("yes", "no"))
    asked = pick(rng, tuple(o for o in possible if (o in true) == (answer == "yes")))
    texts = ("does the picture show {} ?", "do you see {} ?")
    return Question("exists", kind, pick(rng, texts).format(asked), answer, answer)


def chart_list(scene: Scene, rng: np.random.Generator) -> Question:
    """All bars left to right: supervision of every bar."""
    text = " , ".join(f"{b.colour} {b.value}" for b in scene.bars)
    prompt = pick(rng, ("list all bars from left to right .", "read the chart ."))
    return Question("chart_list", "list", prompt, text, text)


def describe(scene: Scene) -> str:
    """The scene in words: what stands where the picture would, in text-only training."""
    if scene.kind == "charts":
        return "chart : " + " ; ".join(f"{b.colour} bar {b.value}" for b in scene.bars) + " ."
    return (
        "objects : " + " ; ".join(f"{t.place} {t.size} {name_of(t)}" for t in scene.things) + " ."
    )


def patch_labels(scene: Scene, patch: int = 8) -> dict[str, np.ndarray]:
    """What each patch should know, for the vision tower's training: label 0 means none.

    `colour`, `shape`, `size`, `row`, `column`, `tens`, `ones`: int64 arrays of (SIZE/patch)^2
    labels in reading order. In a shapes world a patch is told of the object of the cell its centre
    lies in; in a chart, of the bar whose column its centre lies in or is nearest to (within one
    patch).
    """
    side = SIZE // patch
    labels = {
        k: np.zeros((side, side), dtype=np.int64)
        for k in ("colour", "shape", "size", "row", "column", "tens", "ones")
    }
    centres = (np.arange(side) + 0.5) * patch
    names = list(COLOURS)
    by_cell = {t.cell: t for t in scene.things}
    columns = bar_columns(len(scene.bars)) if scene.bars else []
    for i, y in enumerate(centres):
        for j, x in enumerate(centres):
            thing = by_cell.get(int(y * 3 // SIZE) * 3 + int(x * 3 // SIZE))
            if thing:
                labels["colour"][i, j] = 1 + names.index(thing.colour)
                labels["shape"][i, j] = 1 + SHAPES.index(thing.shape)
                labels["size"][i, j] = 1 + SIZES.index(thing.size)
                labels["row"][i, j] = 1 + ROWS.index(thing.row)
                labels["column"][i, j] = 1 + COLUMNS.index(thing.column)
            for bar, (left, right) in zip(scene.bars, columns, strict=True):
                if (
                    left - 1.5 <= x <= right + 1.5
                    and abs(x - (left + right) / 2) <= (right - left) / 2 + 1.5
                ):
                    labels["colour"][i, j] = 1 + names.index(bar.colour)
                    labels["tens"][i, j] = 1 + bar.value // 10
                    labels["ones"][i, j] = 1 + bar.value % 10
    return {k: v.reshape(-1) for k, v in labels.items()}
