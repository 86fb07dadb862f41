"""The work of a notebook as data: steps, each of a kind that the preflight's pilot can measure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["BLOCKS", "PILOT_COUNT", "Size", "Step"]

BLOCKS: dict[str, int | None] = {
    "evaluate": 32,
    "layer_geometry": 8,
    "own_answers": 16,
    "text_geometry": 8,
    "placed_geometry": 8,
    "substitution_grid": 16,
    "truncation_sweep": 16,
    "physical sweep": 1,
    "token_kl": 16,
    "reasoning_sweep": 16,
    "recovery_sweep": 256,
    "adapted sweep": 256,
    "training_samples": None,
    "targets": 64,
    "distill": None,
    "decode": 32,
    "time_by_depth": None,
}
"""Kind of measurement -> samples that it takes at once; None where its size is no sample count."""
PILOT_COUNT = 1024
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
