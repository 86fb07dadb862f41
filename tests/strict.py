"""Warnings as errors, for the code under test alone."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Every warning is an error, but for sockets and loops that an earlier test left to Python.

    Those are closed whenever memory is tidied up, so their warning would fail any test.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)
        yield
