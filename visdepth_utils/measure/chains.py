"""Chains of reasoning as text: where the answer starts, and how far apart two chains are.

A long text differs more often than a short one, whatever caused it. So a distance is held against
the distance to outputs about *other* pictures, in the same format: 0 is equal, 1 is no more alike
than unrelated texts (one minus a chance-corrected agreement, as Krippendorff's alpha or Cohen's
kappa). On that scale a chain of thirty words and an answer of one can be compared.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from visdepth_utils.measure.scores import answer_span, normalise

_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+(?:'\w+)?|[^\w\s]")
_STEP = re.compile(r"\.(?!\d)|[\n;!?]+")

OUTPUTS = {"sample", "image", "task", "kind", "style", "mode", "depth", "control", "output"}


def split_answer(text: str) -> tuple[str, str, bool]:
    """Part an output into chain and normalised final answer, and say whether anything names it.

    The chain is what stands before that which names the answer (``scores.answer_span``). Where
    nothing does, the chain is empty and the whole text is the answer. Thinking that no answer
    follows is a chain with an empty answer.
    """
    start, begin, stop = answer_span(text)
    named = begin > 0 and start < stop
    return text[:start].strip(), normalise(text[begin:stop]), named


def words(text: str) -> list[str]:
    """Words, numbers and marks of a text, in lower case; "1,234" is one of them."""
    return _WORD.findall(text.lower())


def steps(text: str) -> list[str]:
    """Steps of a chain: what stands between full stops (not in numbers), ; ! ? and line ends."""
    return [step for part in _STEP.split(text) if (step := normalise(part))]


def step_agreement(a: str, b: str) -> float:
    """F1 of the steps of two chains, equal after normalising, each used once; both empty: 1."""
    one, two = _counted(a), _counted(b)
    if not one and not two:
        return 1.0
    return 2 * sum((one & two).values()) / (sum(one.values()) + sum(two.values()))


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Add distances to the full model's output, and what chance would make of them.

    Chance at a depth, for sample i: the mean distance of i's full output to the outputs *at that
    depth* of all samples with another picture, same task, kind and style.

    Args:
        table: Columns ``sample, image, task, kind, style, mode, depth, control, output``; the rows
            of the largest depth without a control are the full model's. With ``question`` (what was
            asked), distances without the question's words are added: a chain repeats them whatever
            the image shows.

    Returns:
        The table with ``chain, answer`` (texts), ``ends`` (whether a final answer is named),
        ``same`` (the very output), ``diverges`` (words before the first that differs; NaN where
        none does), ``edit`` (words, 0..1), ``steps`` (1 - F1), ``flip`` (another final answer) and,
        with questions, ``own_words`` (the chain's words that its question has not) and ``edit_own``
        (their distance), all distances also as ``..._chance``; NaN where no other picture has such
        a question.

    Raises:
        ValueError: If a column is missing, or a sample has no row of the full model.
    """
    if missing := OUTPUTS - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(f"table lacks column(s) {names}: pass what reasoning_sweep returns")
    table = table.reset_index(drop=True)
    parts = [split_answer(text) for text in table["output"]]
    table["chain"], table["answer"], table["ends"] = zip(*parts, strict=True)
    if "question" in table:
        asked = {text: set(words(text)) for text in table["question"].unique()}
        table["own_words"] = [
            " ".join(word for word in words(text) if word not in asked[question])
            for text, question in zip(table["chain"], table["question"], strict=True)
        ]
    full = table[(table["depth"] == table["depth"].max()) & (table["control"] == "")]
    full = full.drop_duplicates("sample").set_index("sample")
    if lacking := set(table["sample"]) - set(full.index):
        raise ValueError(f"{len(lacking)} samples have no row of the full model: measure depth L")
    table["same"] = table["output"] == table["sample"].map(full["output"])
    table["diverges"] = [
        _divergence(words(a), words(b))
        for a, b in zip(table["sample"].map(full["output"]), table["output"], strict=True)
    ]
    out = []
    groups = ["mode", "control", "depth", "task", "kind", "style"]
    for _, rows in table.groupby(groups, sort=False, dropna=False):
        out.append(_with_distances(rows, full.loc[rows["sample"]]))
    return pd.concat(out).sort_index()


def _with_distances(rows: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Own and chance distances of one condition and format; ``full`` holds the same samples."""
    others = full["image"].to_numpy()[:, None] != rows["image"].to_numpy()[None, :]
    found, texts = {}, {"edit": "chain", "edit_own": "own_words"}
    for name, matrix in (
        *((name, _edits(full[t], rows[t])) for name, t in texts.items() if t in rows),
        ("steps", _step_distances(full["chain"], rows["chain"])),
        ("flip", full["answer"].to_numpy()[:, None] != rows["answer"].to_numpy()[None, :]),
    ):
        found[name] = np.diagonal(matrix).astype(float)
        count = others.sum(1)
        total = np.where(others, matrix, 0.0).sum(1)
        found[f"{name}_chance"] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return rows.assign(**found)


def _divergence(a: Sequence[str], b: Sequence[str]) -> float:
    """How many words two texts begin with in common; NaN where they are equal."""
    return float("nan") if a == b else float(len(os.path.commonprefix([a, b])))


def _edits(one: Sequence[str], two: Sequence[str]) -> np.ndarray:
    """Normalised edit distances over words, (len(one), len(two)); a word becomes one character."""
    letters: dict[str, str] = {}

    def coded(text: str) -> str:
        return "".join(letters.setdefault(w, chr(0x10000 + len(letters))) for w in words(text))

    sides = [[coded(text) for text in side] for side in (one, two)]
    return cdist(*sides, scorer=Levenshtein.normalized_distance, dtype=np.float64)


def _step_distances(one: Sequence[str], two: Sequence[str]) -> np.ndarray:
    """All distances of steps, (len(one), len(two))."""
    return np.array([[1 - step_agreement(a, b) for b in two] for a in one])


@lru_cache(4096)
def _counted(text: str) -> Counter[str]:
    """The steps of a text, found once."""
    return Counter(steps(text))
