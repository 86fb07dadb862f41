"""Many analyses of the same tables: rows are chosen and averaged once for all of them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

__all__ = ["once", "only", "same_tables", "values_of"]

P = ParamSpec("P")
T = TypeVar("T")
_KEPT: ContextVar[dict[Any, tuple[pd.DataFrame, Any]] | None] = ContextVar("kept", default=None)


@contextmanager
def same_tables() -> Iterator[None]:
    """Inside, no table is changed in place, so that functions under ``once`` keep what they made.

    What was kept is dropped at the end of the outermost block.
    """
    token = _KEPT.set({} if _KEPT.get() is None else _KEPT.get())
    try:
        yield
    finally:
        _KEPT.reset(token)


def once(
    function: Callable[Concatenate[pd.DataFrame, P], T],
) -> Callable[Concatenate[pd.DataFrame, P], T]:
    """Inside ``same_tables``, call a function once for each table (the very object) and arguments.

    Arguments are text, numbers, and lists of them; what is returned must not be changed in place.
    """

    @wraps(function)
    def kept(table: pd.DataFrame, *args: P.args, **options: P.kwargs) -> T:
        memory = _KEPT.get()
        if memory is None:
            return function(table, *args, **options)
        key = (function, id(table), json.dumps([args, options]))
        if key not in memory:  # with the table, which keeps its id from being given to another
            memory[key] = (table, function(table, *args, **options))
        return memory[key][1]

    return kept


@once
def only(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows whose columns have these values; of a list, one of them."""
    for column, value in values.items():
        own = table[column]
        table = table[own.isin(value) if isinstance(value, list) else own == value]
    return table


@once
def values_of(table: pd.DataFrame, column: str) -> set[Any]:
    """The values of a column."""
    return set(table[column].unique())
