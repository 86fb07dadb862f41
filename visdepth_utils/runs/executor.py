"""Where shards of a measurement run: in this process, or on a Ray cluster; see ``engine``."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from visdepth_utils.common.progress import Progress
from visdepth_utils.runs.engine import Measure, Shard, chosen_engine


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Within it, notebooks share one Ray: that of RAY_ADDRESS, else a local one that ends with it.

    With the engine ``local`` nothing happens.
    """
    if chosen_engine() == "local":
        yield
        return
    from visdepth_utils.runs import ray_executor

    with ray_executor.serving():
        yield


def map_shards(
    name: str,
    shards: Iterator[Shard],
    fn: Measure,
    keep: Callable[[int, pd.DataFrame], Any],
    show: Progress,
    total: int,
) -> None:
    """Measure shards and hand over each table as it comes.

    Args:
        name: Of the step, for messages.
        shards: Asked for the next one only when somebody is free to measure it.
        fn: Called with (samples, progress). With Ray it is pickled, model included, as a recipe.
        keep: Called here, with (index of the first sample, table), in the order of completion.
        show: Called with (samples done, total, label).
        total: Samples of all shards, also of those that the iterator leaves out.

    Raises:
        RuntimeError: Ray only: a shard failed in every attempt, after all others were kept.
    """
    if chosen_engine() == "ray":
        from visdepth_utils.runs import ray_executor

        ray_executor.Job(name, shards, fn, keep, show, total).run()
        return
    for start, samples in shards:

        def progress(done: int, _total: int, label: str, start: int = start) -> None:
            show(start + done, total, label)

        keep(start, fn(samples, progress))
