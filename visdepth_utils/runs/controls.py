"""Controls that do not fit into memory: the run goes on, and its verdict says which and why.

An untrained control is as large as the model. Where there is no room for one, the claim can still
be measured; but a pattern that is there is then "inconclusive", for lack of what it is held
against.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from visdepth_utils.common.errors import first_line
from visdepth_utils.measure.batching import out_of_memory

if TYPE_CHECKING:
    from visdepth_utils.runs.run import Run

__all__ = ["control_table"]


def control_table(
    run: Run,
    step: str,
    fn: Callable[[], pd.DataFrame],
    key: dict[str, Any],
    *,
    name: str,
    like: pd.DataFrame,
) -> pd.DataFrame:
    """Measure a control as ``Run.table`` would; if there is no memory for it, say so.

    The reason is printed, and the table then has the rows of ``like`` (the same measurement on the
    trained model) without values and with the reason in ``note``. It is not cached: a later run
    with more memory measures the control, which is called ``name``.
    """
    try:
        return run.table(step, fn, key)
    except (MemoryError, RuntimeError) as error:
        causes = [one for one in (error, error.__cause__) if one is not None]
        if not any(map(out_of_memory, causes)):
            raise
        reason = f"not measured, no memory: {_facts(error)}"
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"{step}: {name} {reason}")
    return like.assign(value=float("nan"), note=reason)


def _facts(error: BaseException) -> str:
    """The first line of an error, without the mend that ours end in."""
    line = first_line(error, 300)
    return (line.rpartition(": ")[0] or line)[:200]
