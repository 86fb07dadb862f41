"""Errors in one line, and a command line whose errors are such lines."""

import argparse
import re
from typing import NoReturn

_ADDRESS = re.compile(r"<([\w.]+) object at 0x[0-9a-fA-F]+>")


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of a message, or the name of an error without one, without objects' addresses.

    So it may be recorded, and is the same in every run. ``most``: characters at most.
    """
    text = _ADDRESS.sub(r"\1", str(error).strip())
    return (text or type(error).__name__).splitlines()[0][:most]


def named_line(error: BaseException, most: int = 300) -> str:
    """``Name: message``: name of an error and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error, most) if str(error) else 'no message'}"


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line like every other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raise a ValueError in the place of printing the usage and leaving."""
        raise ValueError(f"{message}; see {self.prog} --help")
