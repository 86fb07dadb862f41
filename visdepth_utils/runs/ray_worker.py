"""What runs in a worker process on a Ray cluster: load a measurement once, then measure shards."""

from __future__ import annotations

import os
import socket
import traceback
from typing import Any

import pandas as pd

from visdepth_utils.common.errors import named_line

Outcome = tuple[str | None, pd.DataFrame | None]
"""An error in one line or None, and a table. Errors travel as text: any can be pickled so."""


class Worker:
    """Holds one model; the cluster may start many."""

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        """Take only this worker's share of the machine: ``num_cpus`` threads, and its GPUs."""
        import torch

        from visdepth_utils.measure import batching

        torch.set_num_threads(max(1, int(num_cpus)))
        if not num_gpus:
            # Others on this machine look at the same free memory.
            batching.SHARE_OF_FREE *= min(1.0, max(num_cpus, 1) / (os.cpu_count() or 1))
        self.token, self.fn = "", None

    def load(self, token: str, blob: bytes, version: str) -> Outcome:
        """Unpickle a measurement; the models in it are loaded if this process lacks them.

        ``token`` names the measurement, ``version`` is that of the measuring code that pickled it.
        """
        from ray import cloudpickle

        from visdepth_utils.runs import measuring_code

        try:
            if measuring_code.code_version() != version:
                raise ValueError("its measuring code or libraries are of another version")
            self.token, self.fn = token, cloudpickle.loads(blob)
        except Exception as error:
            return f"on {socket.gethostname()}: {_one_line(error)}", None
        return None, None

    def measure(self, token: str, samples: list[Any]) -> Outcome:
        """Measure one shard by the measurement that was loaded."""
        if token != self.token or self.fn is None:
            return f"the worker holds measurement {self.token!r}, not {token!r}", None
        try:
            return None, self.fn(samples, lambda *_: None)
        except Exception as error:
            return _one_line(error), None


def _one_line(error: BaseException) -> str:
    """Name and first line; the whole traceback with DEBUG=1."""
    if os.environ.get("DEBUG"):
        return "".join(traceback.format_exception(error))
    return named_line(error)
