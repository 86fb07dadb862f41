"""The work of a notebook as data: steps, each of a kind that the preflight's pilot can measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["BLOCKS", "PILOT_COUNT", "Size", "Step"]
"""Image tokens at which the pilot times the reference decoder of notebook 08."""


@dataclass(frozen=True)
class Size:
    """What the amount of work depends on.

    Attributes:
        n: Samples per task.
        full: Whether the profile is ``full``.
        n_layers: L.
        adapters: Names of the adapters that are there already and need no training, as
            ``adapters.adapter`` gives them: ``caption-d4``, ``caption-d4-shuffled``.
    """

    n: int
    full: bool = False
    n_layers: int = 12
    adapters: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Step:
    """One measurement of a notebook.

    Attributes:
        table: Name of its step in the cache, with ``*`` for what varies; empty if it is not kept.
        kind: Of ``BLOCKS``, or ``load``.
        task: What it is measured on; ``reason:long`` names a style as well.
        units: How much: samples, or what the kind counts (steps of training, runs of a decoder).
        times: How often.
        options: What else changes its cost, as pairs.
    """

    table: str
    kind: str
    task: str = ""
    units: float = 1
    times: int = 1
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def probe(self) -> tuple[str, str, tuple[tuple[str, Any], ...]]:
        """What the pilot must measure for it; steps may share one."""
        return self.kind, self.task, self.options

    @property
    def calls(self) -> int:
        """How often the cost of a block, beside that of its samples, is paid."""
        block = BLOCKS.get(self.kind)
        return self.times * (math.ceil(self.units / block) if block else 1)
