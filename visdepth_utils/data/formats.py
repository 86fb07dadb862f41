"""What differs between data sets, as data: columns, hub id, split, prompt, scoring, and whose task.

Hub ids and columns are those of the data sets' cards. Prompts and budgets are our defaults, close
to lmms-eval's where it has the data set, because a suffix alone moves published scores by several
points; ``load_task(prompt=...)`` changes them, and each task records the one it used.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from visdepth_utils.data.images import BadRow

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?([A-Z])\)?\.?")
_CHOOSE = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Said:
    """What the text columns of a row say."""

    words: dict[str, str]  # fills the prompt's fields
    answer: str  # the short answer (a letter where there are choices)
    references: tuple[str, ...] = ()  # all accepted; the first is the one for teacher forcing
    kind: str = ""  # type of question
    choices: tuple[str, ...] = ()  # empty for an open question


@dataclass(frozen=True)
class Format:
    """A known layout of rows."""

    title: str  # for messages: "it holds ... rows"
    columns: tuple[tuple[str, ...], ...]  # alternatives; all names of one must be there
    read: Callable[[dict[str, Any]], Said]  # raises BadRow
    rules: dict[str, str]  # task -> scoring rule: of its own name and of each task it can fill
    prompt: dict[str, str]  # templates with the fields of ``Said.words``
    budget: dict[str, int]  # tokens an answer may take
    images: tuple[str, ...] = ("image",)  # columns that hold pictures
    blind: bool = False  # whether a row may be without picture
    hub: str = ""  # its id on the hub; empty for a layout without one
    split: str | None = None  # taken unless another is chosen
    subset: str | None = None  # configuration taken unless another is chosen; None: all
    without: tuple[str, ...] = ()  # columns that only another format has
    # The task that a row names or is made for; "" for any the format has.
    role: Callable[[dict[str, Any]], str] = lambda row: ""

    def fits(self, columns: Sequence[str]) -> bool:
        """Whether rows with these columns can be read."""
        whole = any(set(names) <= set(columns) for names in self.columns)
        return whole and not set(self.without) & set(columns)

    def of(self, table: dict[str, Any], role: str) -> Any:
        """The entry for a task, else the one for all (``""``)."""
        return table.get(role, table.get(""))


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if column not in row:
        raise BadRow(f"it lacks {column!r}: add it")
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"its {column} is {value!r:.60} ({type(value).__name__}): it must be text")
    return value.strip()


def _plain(row: dict[str, Any], column: str) -> str:
    """A text or a number, as text."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return _text(row, column)
    return str(int(value)) if value.is_integer() else repr(value)


def _texts(row: dict[str, Any], column: str) -> tuple[str, ...]:
    """One text or number, or a list of them, all accepted."""
    value = row.get(column)
    several = value if isinstance(value, list) and value else [value]
    return tuple(_plain({column: part} if column in row else {}, column) for part in several)


def _choices(row: dict[str, Any]) -> tuple[str, ...]:
    found = row.get("choices")
    if not isinstance(found, list) or len(found) < 2 or len(found) > len(LETTERS):
        raise BadRow(f"its choices are {found!r:.60}: give a list of 2 to {len(LETTERS)} texts")
    return tuple(_plain({"choice": choice}, "choice") for choice in found)


def _options(choices: Sequence[str]) -> str:
    return "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices))


def _by_index(row: dict[str, Any], choices: Sequence[str]) -> str:
    value = row.get("answer")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(choices):
        raise BadRow(
            f"its answer is {value!r:.60}: it must be the place of one of {len(choices)} choices, "
            "from 0"
        )
    return LETTERS[value]


def _by_letter(row: dict[str, Any], choices: Sequence[str]) -> str:
    answer = _text(row, "answer")
    found = _LETTER.fullmatch(answer)
    if not found or LETTERS.index(found.group(1)) >= len(choices):
        raise BadRow(f"its answer {answer!r:.60} names none of its {len(choices)} choices")
    return found.group(1)


def _any_answer(row: dict[str, Any], choices: Sequence[str]) -> str:
    """A choice's text, its letter, or (a number that is no choice's text) its place from 0."""
    value = row.get("answer")
    said = _plain(row, "answer")
    if said in choices:
        if choices.count(said) > 1:
            raise BadRow(f"its answer {said!r:.60} is there twice among its choices")
        if isinstance(value, int) and 0 <= value < len(choices) and choices[value] != said:
            raise BadRow(
                f"its answer {said} is a choice and also the place of another: use letters"
            )
        return LETTERS[choices.index(said)]
    return _by_letter(row, choices) if isinstance(value, str) else _by_index(row, choices)


def _blink(row: dict[str, Any]) -> Said:
    choices = _choices(row)
    letter = _by_letter(row, choices)  # "(A)"; the answers of the test split are hidden
    words = {"question": _text(row, "question"), "options": _options(choices)}
    words["prompt"] = _text(row, "prompt")  # question and options as the authors put them
    return Said(words, letter, kind=_text(row, "sub_task"), choices=choices)


def _chartqa(row: dict[str, Any]) -> Said:
    if "query" not in row:
        kind = _text(row, "type").partition("_")[0]  # "human_test", "augmented_test"
        if kind not in ("human", "augmented"):
            raise BadRow(f"its type is {kind!r:.60}: ChartQA's begin with human or augmented")
        return Said({"question": _text(row, "question")}, _text(row, "answer"), kind=kind)
    answers = _texts(row, "label")
    kind = {"0": "human", "1": "augmented"}.get(str(row.get("human_or_machine")), "")
    return Said({"question": _text(row, "query")}, answers[0], answers, kind)


def _flickr8k(row: dict[str, Any]) -> Said:
    captions = tuple(_text(row, f"caption_{k}") for k in range(5))
    return Said({}, captions[0], captions, "caption")


def _scienceqa(row: dict[str, Any]) -> Said:
    choices = _choices(row)
    hint = _text(row, "hint") if str(row.get("hint") or "").strip() else ""
    words = {"question": _text(row, "question"), "options": _options(choices)}
    words["hint"] = f"Context: {hint}\n" if hint else ""
    return Said(words, _by_index(row, choices), kind=str(row.get("subject") or ""), choices=choices)


def _table_role(row: dict[str, Any]) -> str:
    return str(row.get("task") or ("mcq" if row.get("choices") else "vqa"))


def _table(row: dict[str, Any]) -> Said:
    words, kind = {"question": _text(row, "question")}, str(row.get("kind") or "")
    if not row.get("choices") or _table_role(row) != "mcq":
        answers = _texts(row, "answer")
        return Said(words, answers[0], answers, kind)
    choices = _choices(row)
    words["options"] = _options(choices)
    return Said(words, _any_answer(row, choices), kind=kind, choices=choices)


FORMATS: dict[str, Format] = {
    "blink": Format(
        title="BLINK",
        columns=(("question", "sub_task", "image_1", "choices", "answer", "prompt"),),
        read=_blink,
        rules={"blink": "letter", "mcq": "letter"},
        prompt={
            "": "Note: You only need to respond with A, B, ... "
            "without providing any additional information.\n{prompt}"
        },
        budget={"": 16},
        images=("image_1", "image_2", "image_3", "image_4"),
        hub="BLINK-Benchmark/BLINK",
        split="val",
    ),
    "chartqa": Format(
        title="ChartQA",
        columns=(
            ("image", "query", "label", "human_or_machine"),
            ("image", "question", "answer", "type"),
        ),
        read=_chartqa,
        rules={"chartqa": "relaxed", "chart": "relaxed", "vqa": "relaxed"},
        prompt={"": "{question}\nAnswer the question with a single word."},
        budget={"": 16},
        hub="HuggingFaceM4/ChartQA",
        split="test",
        without=("choices", "task"),
    ),
    "flickr8k": Format(
        title="Flickr8k",
        columns=(("image", *(f"caption_{k}" for k in range(5))),),
        read=_flickr8k,
        rules={"flickr8k": "captions", "caption": "captions"},
        prompt={"": "Provide a one-sentence caption for the provided image."},
        budget={"": 64},
        hub="jxie/flickr8k",
        split="test",
    ),
    "scienceqa": Format(
        title="ScienceQA",
        columns=(("image", "question", "choices", "answer", "hint"),),
        read=_scienceqa,
        rules={"scienceqa": "letter", "mcq": "letter"},
        prompt={"": "{hint}" + _CHOOSE},
        budget={"": 16},
        blind=True,
        hub="lmms-lab-encoder/ScienceQA",
        split="test",
        subset="ScienceQA-IMG",
    ),
    "table": Format(
        title="question",
        columns=(("image", "question", "answer"),),
        read=_table,
        rules={"mcq": "letter", "vqa": "words", "chart": "relaxed", "caption": "captions"},
        prompt={
            "mcq": _CHOOSE,
            "caption": "{question}",
            "": "{question}\nAnswer the question using a single word or phrase.",
        },
        budget={"caption": 64, "": 16},
        role=_table_role,
    ),
}
"""Format -> how its rows are read. The order is the one in which columns are compared."""

READ = frozenset(
    column
    for form in FORMATS.values()
    for names in (*form.columns, form.images, ("choices", "hint", "kind", "subject", "task"))
    for column in names
)
"""Columns that some format reads."""


def detect(columns: Sequence[str]) -> str | None:
    """The format that columns belong to, or None."""
    return next((name for name, known in FORMATS.items() if known.fits(columns)), None)
