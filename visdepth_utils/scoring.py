"""Scores of generated answers, 0 to 1. Small and versioned: a scorer can decide a result.

Each rule is for answers as models really give them: a letter in a sentence, a number with a per
cent sign, nothing at all. A change of any rule changes `SCORER_VERSION`, which is part of every
cached table's key.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from visdepth_utils.datasets import Sample

SCORER_VERSION = "2"
RELATIVE_TOLERANCE = 0.05  # ChartQA's relaxed accuracy

_LETTER_PATTERNS = (
    r"^\(?([A-Z])\)?\s*[.:)]?\s*$",  # "B", "(B)", "B."
    r"\banswer\s*(?:is|:)\s*:?\s*\(?([A-Z])\)?(?![A-Za-z'])",  # "The answer is (B)"
    r"\(([A-Z])\)",  # "... option (B) ..."
    r"^([A-Z])\s*[.:)]\s",  # "B. the red one"
)
_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?|-?\.\d+")
_AROUND = " \t\n$€£%"  # what may stand around a number that is the whole target


def choice_letter(output: str) -> str | None:
    """The option letter an answer names, or None.

    Capital letters only, and never the first letter of a word: "Based on" is not B, "The answer is
    (B)" is.
    """
    text = output.strip()
    for pattern in _LETTER_PATTERNS:
        found = set(re.findall(pattern, text))
        if found:  # "(A) red (B) blue" repeats the options and names none
            return found.pop() if len(found) == 1 else None
    return None


def number(text: str) -> float | None:
    """The last number of a text; "1,234" is 1234, "50%" is 50. None if there is none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def relaxed_match(output: str, target: str, tolerance: float = RELATIVE_TOLERANCE) -> float:
    """1 if the number is within `tolerance` of the target; a target of 0 must be met exactly.

    A target that is not wholly a number ("March 2019", "18-29") is compared as words: else any
    answer with the same year would do.
    """
    whole = _NUMBER.fullmatch(target.strip(_AROUND))
    truth, said = number(target) if whole else None, number(output)
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


def best_caption(output: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 with the most alike of several captions by people."""
    from visdepth_utils.similarity import similarity

    return float(similarity([output], [references], "rouge")[0])


RULES: dict[str, Callable[[Sample, str], float]] = {
    "letter": lambda s, out: float(choice_letter(out) == s.answer),
    "words": lambda s, out: max(word_match(out, text) for text in s.references or (s.answer,)),
    "relaxed": lambda s, out: max(relaxed_match(out, text) for text in s.references or (s.answer,)),
    "objects": lambda s, out: caption_f1(out, s.reference),
    "final": lambda s, out: word_match(final_answer(out), s.answer),
    "captions": lambda s, out: best_caption(out, s.accepted),
}
TASK_RULES = {
    "mcq": "letter",
    "vqa": "words",
    "chart": "relaxed",
    "caption": "objects",
    "reason": "final",
}
"""Rules of the embedded tasks; samples of other data name theirs (``sources.formats``)."""


def score(sample: Sample, output: str) -> float:
    """Score one generated answer by its sample's rule, else by its task's.

    Args:
        sample: The question with its answer and reference.
        output: The generated text without special tokens.

    Returns:
        0 to 1.

    Raises:
        ValueError: There is no such rule, or the task has none.
    """
    rule = sample.rule or TASK_RULES.get(sample.task)
    if rule is None:
        raise ValueError(f"no scorer for task {sample.task!r}: known are {', '.join(TASK_RULES)}")
    if rule not in RULES:
        raise ValueError(f"no scoring rule {rule!r}: known are {', '.join(RULES)}")
    return RULES[rule](sample, output)
