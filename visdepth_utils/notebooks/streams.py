"""How a notebook's output is shown while it runs: as it comes, or by lines among others."""

import re
import threading
import time
from typing import TextIO

__all__ = ["Indented", "Shown", "Tagged", "plain", "say"]

_EVERY = 5.0
"""Seconds between two states of one line of progress."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_lock = threading.Lock()


def plain(text: str) -> str:
    """A text, with names out of anybody's file in it, as a terminal may show it.

    Line feeds, carriage returns and tabs stay; colours go. Any other control character, which could
    set the title of a terminal or move its cursor, is spelt out.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", _COLOUR.sub("", text))


def say(stream: TextIO, text: str) -> None:
    """Print a line at once, also into a pipe, and whole, whatever other threads print.

    ``print`` writes the line and its end apart: another thread's line can come between them.
    """
    with _lock:
        stream.write(f"{plain(text)}\n")
        stream.flush()


class Indented:
    """For one notebook at a time: indented, lines rewritten in place only in a terminal."""

    def __init__(self, stream: TextIO, indent: str = "    ") -> None:
        """Wrap a stream; ``indent`` stands in front of each line."""
        self.stream, self.indent, self.fresh = stream, indent, True

    def write(self, text: str) -> None:
        """Pass text on: any piece of output, not necessarily whole lines."""
        in_place = self.stream.isatty()
        for piece in re.split(r"(\r?\n|\r)", plain(text)):
            if piece == "\r":
                if in_place:
                    self.stream.write("\r\x1b[K")
                elif not self.fresh:  # a log keeps each state of the line
                    self.stream.write("\n")
                self.fresh = True
            elif piece in ("\n", "\r\n"):
                self.stream.write("\n")
                self.fresh = True
            elif piece:
                self.stream.write((self.indent if self.fresh else "") + piece)
                self.fresh = False

    def flush(self) -> None:
        """Flush the wrapped stream."""
        self.stream.flush()

    def end(self) -> None:
        """Finish a line that was left open."""
        if not self.fresh:
            self.write("\n")


class Tagged:
    """For one of several notebooks: whole lines, each with a tag in front.

    A line that is rewritten in place, as progress is, is shown once in a few seconds.
    """

    def __init__(self, stream: TextIO, tag: str) -> None:
        """Wrap a stream; ``tag`` stands in front of each line."""
        self.stream, self.tag = stream, tag
        self.line, self.shown = "", time.monotonic()

    def write(self, text: str) -> None:
        """Pass text on: any piece of output, not necessarily whole lines."""
        *whole, self.line = (self.line + text.replace("\r\n", "\n")).split("\n")
        for line in whole:
            self._show(line.rpartition("\r")[2])
        before, _, self.line = self.line.rpartition("\r")
        state = before.rpartition("\r")[2]
        if state.strip() and time.monotonic() - self.shown > _EVERY:
            self._show(state)

    def _show(self, line: str) -> None:
        self.shown = time.monotonic()
        say(self.stream, f"{self.tag}{line.rstrip()}")

    def flush(self) -> None:
        """Lines are flushed as they are written."""

    def end(self) -> None:
        """Finish a line that was left open."""
        if self.line.strip():
            self.write("\n")


Shown = Indented | Tagged
"""Takes what a notebook prints, in pieces."""
