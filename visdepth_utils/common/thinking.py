"""Blocks of thinking in what a model writes: their marks, and where the answer starts."""

import re

THINKING_ROOM = 512
"""In tokens: a smaller budget hardly reaches the end of a block of thinking."""

_THINKING = r"think(?:ing)?|thought|reasoning"
_OPENED = re.compile(rf"<(?:{_THINKING})>|\[think\]|◁think▷|<\|begin_of_thought\|>", re.I)
_CLOSED = re.compile(rf"</(?:{_THINKING})>|\[/think\]|◁/think▷|<\|end_of_thought\|>", re.I)


def after_thinking(text: str) -> int:
    """Where the answer can start: after the last block of thinking; an open one has no end."""
    start = max((found.end() for found in _CLOSED.finditer(text)), default=0)
    return len(text) if _OPENED.search(text, start) else start


def thinking_marks(prompt: str, template: str) -> tuple[str, str]:
    """Whether a model thinks before it answers, by any prompt of it and its chat template.

    The mark of a block that the prompt leaves open for the answer, and the mark of one that the
    answer can be expected to hold; "" for none.
    """
    prompt = prompt.rstrip()
    ends = [found.group() for found in _OPENED.finditer(prompt) if found.end() == len(prompt)]
    closed = any(found.end() == len(prompt) for found in _CLOSED.finditer(prompt))
    named = None if closed else _OPENED.search(template)
    opened = ends[0] if ends else ""
    return opened, opened or (named.group() if named else "")
