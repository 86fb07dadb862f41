"""Scores of generated answers, 0 to 1. Small and versioned: a scorer can decide a result.

Each rule is for answers as models really give them: a letter in a sentence, a number with a per
cent sign, nothing at all. A change of any rule changes `SCORER_VERSION`, which is part of every
cached table's key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from visdepth_utils.datasets import Sample

SCORER_VERSION = "1"
RELATIVE_TOLERANCE = 0.05  # ChartQA's relaxed accuracy

_LETTER_PATTERNS = (
    r"^\(?([A-Z])\)?\s*[.:)]?\s*$",  # "B", "(B)", "B."
    r"\banswer\s*(?:is|:)\s*:?\s*\(?([A-Z])\)?(?![A-Za-z'])",  # "The answer is (B)"
    r"\(([A-Z])\)",  # "... option (B) ..."
    r"^([A-Z])\s*[.:)]\s",  # "B. the red one"
)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?|-?\.\d+")


def choice_letter(output: str) -> str | None:
    """The option letter an answer names, or None.

    Capital letters only, and never the first letter of a word: "Based on" is not B, "The answer is
    (B)" is.
    """
    text = output.strip()
    for pattern in _LETTER_PATTERNS:
        found = re.search(pattern, text)
        if found:
            return found.group(1)
    return None


def number(text: str) -> float | None:
    """The last number of a text; "1,234" is 1234, "50%" is 50. None if there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def relaxed_match(output: str, target: str, tolerance: float = RELATIVE_TOLERANCE) -> float:
    """1 if the number is within `tolerance` of the target; a target of 0 must be met exactly.

    A target that is no number is compared as words.
    """
    truth, said = number(target), number(output)
    if truth is None:
        return word_match(output, target)
    if said is None:
        return 0.0
    return float(abs(said - truth) <= tolerance * abs(truth))


def normalise(text: str) -> str:
    """Lower case, no punctuation at the ends of words, single spaces."""
    words = (w.strip(".,;:!?\"'()") for w in text.lower().split())
    return " ".join(w for w in words if w)


def word_match(output: str, target: str) -> float:
    """1 if the normalised texts are equal."""
    return float(normalise(output) == normalise(target))


def final_answer(output: str) -> str:
    """What follows the last "answer is"; the whole text if it is not said (a direct answer)."""
    parts = re.split(r"\banswer is\b", output, flags=re.IGNORECASE)
    return parts[-1].strip().rstrip(".").strip()


@lru_cache(maxsize=4096)  # chance compares every answer with every reference
def caption_objects(text: str) -> Counter[str]:
    """Object phrases of a caption as a multiset; size, colour, shape and place must be right."""
    body = re.sub(r"^\s*the picture shows\s+", "", text.strip().rstrip(".").strip())
    return Counter(p for p in (normalise(part) for part in body.split(",")) if p)


def caption_f1(output: str, reference: str) -> float:
    """F1 of the object phrases; 1 if both are empty."""
    said, true = caption_objects(output), caption_objects(reference)
    if not said and not true:
        return 1.0
    hits = sum((said & true).values())
    return 2 * hits / (sum(said.values()) + sum(true.values()))


_SCORERS: dict[str, Callable[[Sample, str], float]] = {
    "mcq": lambda s, out: float(choice_letter(out) == s.answer),
    "vqa": lambda s, out: word_match(out, s.answer),
    "chart": lambda s, out: relaxed_match(out, s.answer),
    "caption": lambda s, out: caption_f1(out, s.reference),
    "reason": lambda s, out: word_match(final_answer(out), s.answer),
}


def score(sample: Sample, output: str) -> float:
    """Score one generated answer by its task's rule.

    Args:
        sample: The question with its answer and reference.
        output: The generated text without special tokens.

    Returns:
        0 to 1.

    Raises:
        ValueError: The task has no scorer.
    """
    if sample.task not in _SCORERS:
        raise ValueError(f"no scorer for task {sample.task!r}: known are {', '.join(_SCORERS)}")
    return _SCORERS[sample.task](sample, output)
