"""Scores of generated answers, 0 to 1. Small: a scorer can decide a result.

Each rule is for answers as models really give them: thinking first, a letter in a sentence, a
number with a per cent sign, an explanation on the next line, nothing at all. Texts are compared by
NFKC and without case. math-verify, the kept parser of stated answers, reads numbers and LaTeX but
neither "[B]" nor "45 in 2019", so what is stated is found here.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache

from visdepth_utils.common.thinking import after_thinking
from visdepth_utils.data.formats import LETTERS
from visdepth_utils.data.samples import Sample

RELATIVE_TOLERANCE = 0.05  # ChartQA's relaxed accuracy

# Of equal meaning, and not made equal by NFKC; NFKC alone would read 10² as 102.
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′ʼ", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("−‐‑‒–—―", "-"),
        **dict.fromkeys("\u200b\u200e\u200f\u2060\ufeff\xad"),  # invisible
        **{mark: f"^{digit}" for digit, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        "⁄": "/",
    }
)
_MARKS = "`~" + "".join(
    mark
    for mark in map(chr, range(0x10000))
    if unicodedata.category(mark).startswith("P") and mark not in "%‰#&@/\\-"
)
"""What may stand around a word without being part of it."""

_GIVEN = re.compile(
    r"\\boxed\s*\{\s*(?:\\(?:text|math)\w*\s*\{)?([^{}]*)\}"
    r"|<answer>(.*?)(?:</answer>|\Z)|<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)",
    re.I | re.S,
)
_CUE = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice))"
    r"[*_\s]*(?:(?:is|(?:would|should|must)\s+be)\b[*_\s]*[:：]?|[:：]|\s[-–—]\s)",
    re.I,
)
_CLAUSE = re.compile(r"[.,;:!?()]|\s-\s")
_SENTENCE = re.compile(r"[.!?。](?=\s|$)")

_NUMBER = re.compile(
    r"(?<![\w^])(?<!\d[-.,/:])[-+]?(?:\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:e[-+]?\d{1,5})?(?!\d)(?![-.,/:^]\d)(?!e[-+]?\d)",  # not in 18-29, 3/4, 10:30, 1.2.3
    re.I,
)
_EQUALS = re.compile(r"=|:\s")
_CURRENCY = re.compile("[$€£¥₹]")
_YEAR = re.compile(r"\b(?:in|during|since|by|year)\s+(?:1[5-9]|20)\d\d\b(?![.,]\d)", re.I)

_MARKUP = re.compile(r"[*`$]+|(?<!\w)_+|_+(?!\w)")
_LEADING = re.compile(
    r"[\s\"'#>:-]*(?:the\s+)?(?:(?:option|choice|letter)\s+)?\"?([(\[{]?)\s*([a-z])(?![\w'])", re.I
)
_NAMED = re.compile(
    r"(?:\b(?:is|be|say|choose|pick|select|option|choice|letter)|'s)\s+[(\[\"']?([A-Z])(?![\w'])"
)
_BRACKETED = re.compile(r"(?<!\w)[(\[]\s*([A-Za-z])\s*[)\]]")
_LISTED = re.compile(r"(?<!\w)[(\[]?([A-Z])[.:)\]]\s+(?=\S)")
_ANOTHER = re.compile(
    r"[\s,;/&)\]]*(?:(?:and|or)\s+[(\[]?[A-HJ-Z](?![\w'])|[(\[]?[A-HJ-Z](?![\w'])(?!\s+[a-z]))"
)
_GOES_ON = re.compile(r"\s*(?:[^\w\s'(]|(?:because|since|as|which|is|for)\b)", re.I)
_ARTICLE = re.compile(r"(?:a|an|the) (?=.)")


def plain(text: str) -> str:
    """A text by NFKC, with straight quotes, ASCII dashes and nothing invisible."""
    return unicodedata.normalize("NFKC", text.translate(_ALIKE)).translate(_ALIKE)


def normalise(text: str) -> str:
    """Plain, case folded, no punctuation at the ends of words, single spaces.

    A text of nothing but punctuation keeps it: it is not the empty text.
    """
    words = unicodedata.normalize("NFKC", plain(text).casefold()).split()
    return " ".join(filter(None, (word.strip(_MARKS) for word in words))) or " ".join(words)


def answer_span(text: str) -> tuple[int, int, int]:
    r"""Where that which names a text's answer starts, and where the answer starts and stops.

    It is named by a box (``\boxed{}``, ``<answer>``), else by the last "answer is" or "answer:",
    else by the end of thinking; (0, 0, the whole length) where nothing names it. A block of
    thinking that is left open has no answer: all three are the length.
    """
    begin = after_thinking(text)
    if given := list(_GIVEN.finditer(text, begin)):
        return given[-1].start(), *given[-1].span(given[-1].lastindex or 0)
    if cues := list(_CUE.finditer(text, begin)):
        return *cues[-1].span(), len(text)
    return begin, begin, len(text)


def _first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def stated(output: str) -> tuple[str, str]:
    """The answer that an output states: to its end, and only its first line."""
    _, start, stop = answer_span(output)
    return output[start:stop].strip(), _first_line(output[start:stop])


def choice_letter(output: str, choices: Sequence[str] = ()) -> str | None:
    """The capital letter of the option that an answer names; None for no option, or several.

    A small letter counts where it stands alone or in brackets. "A" before other words is an
    article, unless they are the option's own text. An option's text said alone names it too.
    Without ``choices`` any letter may be meant.
    """
    letters = LETTERS[: len(choices)] or LETTERS
    output = output[after_thinking(output) :]
    given = [part for found in _GIVEN.findall(output) for part in found if part]
    said = [_MARKUP.sub("", plain(part)) for part in given or _CUE.split(output)[1:]]
    text = _MARKUP.sub("", plain(output))
    first = _first_line(text)

    def one(found: Iterable[str | None]) -> str | None:
        names = {letter.upper() for letter in found if letter}
        return names.pop() if len(names) == 1 else "" if names else None

    def repeated() -> str | None:
        """What leads the first line, unless the options are only repeated there or below."""
        found = [m for m in _LISTED.finditer(text) if _begins(text[m.end() :], m[1], choices)]
        return "" if len({m[1] for m in found}) > 1 else _leading(first, choices)

    for rule in (
        lambda: one(_leading(_first_line(part), choices, named=True) for part in said),
        repeated,
        lambda: one(letter for letter in _BRACKETED.findall(text) if letter.upper() in letters),
        lambda: one(_named(text, choices)),
        lambda: one(_leading(line, choices) for line in text.strip().splitlines()[-1:]),
        lambda: one(_by_text(part, choices) for part in (said or [text])),
    ):
        found = rule()
        if found is not None:  # "" for several
            return found if found and found in letters else None
    return None


def _leading(line: str, choices: Sequence[str], named: bool = False) -> str | None:
    """The letter that a line begins with, if it stands for an option."""
    found = _LEADING.match(line)
    if not found:
        return None
    bracket, letter = found.groups()
    rest = line[found.end() :]
    if not rest.strip(_MARKS + " -"):
        return letter.upper()
    if _ANOTHER.match(rest) or (letter.islower() and not bracket):
        return None
    free = named and letter not in "AI"  # no article, no pronoun
    return letter.upper() if bracket or free or _ends(rest, letter, choices) else None


def _named(text: str, choices: Sequence[str]) -> Iterator[str]:
    """Letters after "is", "option" and the like; of "A or B" both."""
    for found in _NAMED.finditer(text):
        rest = text[found.end() :]
        other = _ANOTHER.match(rest)
        if other or found[1] not in "AI" or _ends(rest, found[1], choices):
            yield found[1]
        if other:
            yield other.group()[-1]


def _ends(rest: str, letter: str, choices: Sequence[str]) -> bool:
    """Whether what follows leaves a letter an option: nothing, a mark, a reason, its own text."""
    said = (rest, _CLAUSE.split(rest)[0]) if choices else ()
    own = any(_by_text(part, choices) == letter.upper() for part in said)
    return not rest.strip() or bool(_GOES_ON.match(rest)) or own


def _begins(rest: str, letter: str, choices: Sequence[str]) -> bool:
    """Whether a text begins with the option's own; with any, where options are not known."""
    place = LETTERS.index(letter.upper())
    if not choices:
        return True
    own = normalise(choices[place]) if place < len(choices) else ""
    return bool(own) and f"{normalise(_first_line(rest))} ".startswith(f"{own} ")


def _by_text(said: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option whose text this is."""
    texts = [_ARTICLE.sub("", normalise(choice), count=1) for choice in choices]
    for part in _readings(said):
        if texts.count(bare := _ARTICLE.sub("", part, count=1)) == 1:
            return LETTERS[texts.index(bare)]
    return None


def number(text: str) -> Decimal | None:
    """The number an answer states; "1,234" is 1234, "50%" is 50. None if there is none.

    That after the cue or at the start of the first line; else the last one of the first line, else
    the last one at all. A year that says when ("45 in 2019") counts only where nothing else does.
    """
    whole, line = (_CURRENCY.sub("", plain(part)) for part in stated(text))
    named = answer_span(text)[1] > 0
    for part in (_EQUALS.split(line)[-1], line, whole):
        found = _NUMBER.findall(_YEAR.sub("", part)) or _NUMBER.findall(part)
        if found:
            starts = _NUMBER.match(part.lstrip(_MARKS.replace(".", "") + " ~≈"))
            return Decimal(found[0 if named or starts else -1].replace(",", ""))
    return None


def relaxed_match(output: str, target: str, tolerance: float = RELATIVE_TOLERANCE) -> float:
    """1 if the number is within `tolerance` of the target; a target of 0 must be met exactly.

    A target that is not wholly a number ("March 2019", "18-29") is compared as words: else any
    answer with the same year would do.
    """
    if word_match(output, target):
        return 1.0
    whole = _NUMBER.fullmatch(_CURRENCY.sub("", plain(target)).strip(" \t\n%"))
    said = number(output)
    if not whole or said is None:
        return 0.0
    truth = Decimal(whole.group().replace(",", ""))
    return float(abs(said - truth) <= Decimal(str(tolerance)) * abs(truth))


def _readings(output: str) -> list[str]:
    """Normalised: the text itself, the answer it states, its first line and its first sentence."""
    whole, line = stated(output)
    return [normalise(part) for part in (output, whole, line, _SENTENCE.split(line)[0])]


def word_match(output: str, target: str) -> float:
    """1 if the stated answer is the target, both normalised; an explanation may follow it."""
    readings = _readings(output) if target.strip() else [normalise(output)]
    return float(normalise(target) in readings)


@lru_cache(maxsize=4096)  # chance compares every answer with every reference
def caption_objects(text: str) -> Counter[str]:
    """Object phrases of a caption as a multiset; size, colour, shape and place must be right."""
    said = text[after_thinking(text) :]
    first, *others = (normalise(part) for part in plain(said).split(","))
    parts = [first.removeprefix("the picture shows").strip(), *others]
    found = [part for part in parts if any(letter.isalnum() for letter in part)]
    return Counter(found or filter(None, [normalise(said)]))


def caption_f1(output: str, reference: str) -> float:
    """F1 of the object phrases; 1 if both are empty."""
    said, true = caption_objects(output), caption_objects(reference)
    if not said and not true:
        return 1.0
    hits = sum((said & true).values())
    return 2 * hits / (sum(said.values()) + sum(true.values()))


def best_caption(output: str, references: Sequence[str]) -> float:
    """ROUGE-L F1 with the most alike of several captions by people."""
    from visdepth_utils.measure.similarity import similarity

    said = plain(output[after_thinking(output) :])
    return float(similarity([said], [[plain(text) for text in references]], "rouge")[0])


RULES: dict[str, Callable[[Sample, str], float]] = {
    "letter": lambda s, out: float(choice_letter(out, s.choices) == s.answer),
    "words": lambda s, out: max(word_match(out, text) for text in s.references or (s.answer,)),
    "relaxed": lambda s, out: max(relaxed_match(out, text) for text in s.references or (s.answer,)),
    "objects": lambda s, out: caption_f1(out, s.reference),
    "captions": lambda s, out: best_caption(out, s.accepted),
}
TASK_RULES = dict(mcq="letter", vqa="words", chart="relaxed", caption="objects", reason="words")
"""Rules of the embedded tasks; samples of other data name theirs (``formats``)."""


def score(sample: Sample, output: str) -> float:
    """Score one generated answer, 0 to 1, by its sample's rule, else by its task's.

    ValueError: there is no such rule, or the task has none.
    """
    rule = sample.rule or TASK_RULES.get(sample.task)
    if rule is None:
        raise ValueError(f"no scorer for task {sample.task!r}: known are {', '.join(TASK_RULES)}")
    if rule not in RULES:
        raise ValueError(f"no scoring rule {rule!r}: known are {', '.join(RULES)}")
    return RULES[rule](sample, output)
