"""What each notebook measures, as steps: from this the preflight tells time, memory and disk.

Each step is of a kind that the pilot can measure. Whatever ``data/claims.yaml`` sets (tasks,
styles, controls, strides, training) is read from there. What stands only in a notebook is repeated
here, and a test compares the two: a step that is added to a notebook and not to this list fails it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from visdepth_utils.claims.c6 import cut_depth
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.data.tasks import EMBEDDED

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


REFERENCE_COUNTS = (64, 256, 576, 1024, 3000)
REFERENCE_DEPTHS, REFERENCE_REPEATS, REFERENCE_LAYERS = (0, 2, 4), 3, 6
"""Of the reference decoder that notebook 08 times."""
DECODED = {"C6": 8, "C7": 12}
"""Questions that are decoded in other ways in profile quick."""
BESIDE_C8 = ("chart", "caption")
BESIDE_SAMPLES, PHYSICAL_SAMPLES = 48, 4
SEEDS, SAMPLED = 3, 2
"""Seeds of the sampled ways of decoding in profile full, and how many ways are sampled."""


def steps_of(notebook: str, size: Size) -> list[Step]:
    """What a notebook measures.

    Args:
        notebook: Its name without ending.
        size: Samples, profile, model.

    Returns:
        Its steps; none for a notebook that is not known here.
    """
    return list(NOTEBOOKS[notebook](size)) if notebook in NOTEBOOKS else []


def _load(how: str = "trained", times: int = 1) -> Step:
    """Reading the model (``trained``), drawing it (``random``), or both (``decoder``)."""
    return Step("", "load", how, times=times)


def _control_loads(claim: dict[str, Any], times: int = 1) -> list[Step]:
    """One model for each control that has one."""
    kinds = [c["load"]["random_init"] for c in claim["controls"].values() if c.get("load")]
    return [_load("decoder" if kind == "decoder" else "random", times) for kind in kinds]


def _conditions(table: str, tasks: Iterable[str], n: int, times: int = 2) -> list[Step]:
    """Answers so many times: with own or another picture, or without, which costs no more."""
    return [Step(table, "evaluate", task, n, times) for task in tasks]


def _start_here(size: Size) -> list[Step]:
    tasks = ["reason:long" if name == "reason" else name for name in EMBEDDED]
    return [_load(), *_conditions("accuracy", tasks, size.n, times=3)]


def _c1(size: Size) -> list[Step]:
    claim = load_claims()["claims"]["C1"]
    again = len(claim["sensitivity"]["layer_geometry"]) if size.full else 0
    both, image = (("groups", 2),), (("groups", 1),)
    out = [_load(), Step("c1_geometry", "layer_geometry", claim["task"], size.n, 1, both)]
    loads = _control_loads(claim, 1 + again)
    times = sum(load.times for load in loads)
    out += [*loads, Step("c1_control", "layer_geometry", claim["task"], size.n, times, image)]
    if again:
        out.append(Step("c1_again", "layer_geometry", claim["task"], size.n, again, both))
    return out


def _c2(size: Size) -> list[Step]:
    claim = load_claims()["claims"]["C2"]
    task, loads = f"{claim['task']['name']}:{claim['task']['style']}", _control_loads(claim)
    return [
        _load(),
        Step("c2_answers", "own_answers", task, size.n),
        Step("c2_geometry", "text_geometry", task, size.n, 1, (("groups", 6),)),
        Step("c2_placed", "placed_geometry", task, size.n),
        *loads,
        Step("c2_control", "text_geometry", task, size.n, len(loads), (("groups", 2),)),
    ]


def _c3(size: Size) -> list[Step]:
    claim = load_claims()["claims"]["C3"]
    settings = claim["substitution_grid"]
    changes = claim["sensitivity"]["substitution_grid"].values() if size.full else ()
    out = [_load()]
    for change in ({}, *changes):
        stride = {**settings, **change}["stride"]
        for modality in ("image", "text"):
            options = (("modality", modality), ("stride", stride))
            for task in claim["tasks"]:
                name = f"c3_{modality}_states"
                out.append(Step(name, "substitution_grid", task, size.n, 1, options))
    return out


def _c4(size: Size) -> list[Step]:
    tasks = [name for names in load_claims()["claims"]["C4"]["tasks"].values() for name in names]
    out = [_load(), *_conditions("c4_conditions", tasks, size.n)]
    for name in tasks:
        others = 2 if size.full or name == "vqa" else 0  # modes of truncation
        out.append(Step(f"truncation_sweep_{name}", "truncation_sweep", name, size.n, 1 + others))
        out.append(Step(f"token_kl_{name}", "token_kl", name, size.n))
    return [*out, Step("", "physical sweep", "vqa", min(size.n, PHYSICAL_SAMPLES))]


def _c0(size: Size) -> list[Step]:
    claim = load_claims()["claims"]["C0"]
    modes = 2 + len(claim["control_modes"])  # those of controls at fewer depths
    sweeps = (
        Step(f"truncation_sweep_{t}", "truncation_sweep", t, size.n, modes) for t in claim["tasks"]
    )
    return [_load(), *_conditions("c4_conditions", claim["tasks"], size.n), *sweeps]


def _c5(size: Size) -> list[Step]:
    asked = load_claims()["claims"]["C5"]["task"]
    task = f"{asked['name']}:{asked['style']}"
    modes = 3 if size.full else 1
    return [_load(), Step("c5_chains_*", "reasoning_sweep", task, size.n, modes)]


def _c6(size: Size) -> list[Step]:
    claim = load_claims()["claims"]["C6"]
    tasks = [claim["tasks"]["recovers"], claim["tasks"]["does not"]]
    tasks += claim["tasks"]["beside"] if size.full else []
    depths = [claim["depth"], "2/3"][: 1 + size.full]
    cuts = [cut_depth({"depth": depth}, size.n_layers) for depth in depths]
    rule = claim["distill"]
    steps, pictures = rule["steps"][0], rule["samples"] + rule["validation"]
    out = [_load()]
    for name in tasks:
        task = "reason:long" if name == "reason" else name
        out.append(Step(f"c6_{name}", "recovery_sweep", task, size.n, len(cuts)))
        out.append(Step("", "training_samples", task, pictures, len(cuts)))
        wanted = [f"{name}-d{cut}{end}" for cut in cuts for end in ("", "-shuffled")]
        cut = len(rule["rates"]) * len({*wanted} - size.adapters)  # all rates are tried
        swept = len(cuts) + len({*wanted} & size.adapters) + cut
        whole = len({f"{name}-d{size.n_layers}"} - size.adapters)
        if cut + whole:
            out.append(Step("", "targets", task, pictures))
        if cut:
            out.append(Step("", "distill", task, steps, cut, (("state", "cut"),)))
        if whole:
            out.append(Step("", "distill", task, steps, whole, (("state", "whole"),)))
        out.append(Step(f"c6_{name}", "adapted sweep", task, size.n, swept))
        # Whole, cut, and cut with an adapter, which costs about as two of them.
        out += _decoded(f"c6_ways_{name}", task, size, DECODED["C6"], 4)
    return out


def _c7(size: Size) -> list[Step]:
    styles = load_claims()["claims"]["C7"]["styles"]
    order = [styles["shorter"], *styles["beside"], styles["longer"]]
    tasks = [f"reason:{style}" for style in order]
    modes = 3 if size.full else 1
    return [
        _load(),
        *(Step("c7_*_*", "truncation_sweep", task, size.n, modes) for task in tasks),
        *_conditions("c7_conditions", tasks, size.n),
        *_decoded("c7_strategies", tasks[0], size, DECODED["C7"], 2),
        *_decoded("c7_strategies", tasks[-1], size, DECODED["C7"], 2),
    ]


def _c8(size: Size) -> list[Step]:
    claim = load_claims()["claims"]["C8"]
    fewer = size.n if size.full else min(size.n, BESIDE_SAMPLES)
    sizes = {name: size.n for name in claim["tasks"]} | dict.fromkeys(BESIDE_C8, fewer)
    own = (claim["image_tokens"], 1024)[: 1 + size.full]
    every = claim["min_repetitions"] * (size.n_layers + 2)
    return [
        _load(),
        *(Step(f"truncation_sweep_{t}", "truncation_sweep", t, n) for t, n in sizes.items()),
        *_conditions("c8_conditions", claim["tasks"], size.n),
        *(
            Step("c8_times_own", "time_by_depth", "own", every, 1, (("count", count),))
            for count in own
        ),
        Step("c8_times_reference", "time_by_depth", "reference", _reference_runs(size.full)),
    ]


def _decoded(table: str, task: str, size: Size, some: int, times: int) -> list[Step]:
    """Greedy and sampled decoding, which cost the same, and beam search."""
    n, seeds = (size.n, SEEDS) if size.full else (min(size.n, some), 1)
    row_by_row = times * (1 + SAMPLED * seeds)
    return [
        Step(table, "decode", task, n, row_by_row, (("way", "greedy"),)),
        Step(table, "decode", task, n, times, (("way", "beam"),)),
    ]


def _reference_runs(full: bool) -> float:
    """Runs of the reference decoder, counted in whole runs at PILOT_COUNT tokens by FLOPs."""
    from visdepth_utils.measure.costs import predicted_costs, shape_of
    from visdepth_utils.measure.random_decoders import text_config

    other = load_claims()["claims"]["C8"]["other_tokens"]
    repeats = load_claims()["claims"]["C8"]["min_repetitions"] if full else REFERENCE_REPEATS
    depths = "all" if full else (*REFERENCE_DEPTHS, REFERENCE_LAYERS)
    shape = shape_of(text_config("reference"))
    one = predicted_costs(shape, PILOT_COUNT, other, [shape.layers])["prefill_flops"].iloc[0]
    total = 0.0
    for count in REFERENCE_COUNTS:
        flops = predicted_costs(shape, count, other, depths)["prefill_flops"]
        # The whole model runs twice in every repetition; two runs come first and do not count.
        total += repeats * (flops.sum() + flops.iloc[-1]) + flops.iloc[0] + flops.iloc[-1]
    return float(total / one)


NOTEBOOKS: dict[str, Callable[[Size], list[Step]]] = {
    "00_start_here": _start_here,
    "01_image_tokens_stabilise": _c1,
    "02_text_tokens_restructure": _c2,
    "03_layers_are_interchangeable": _c3,
    "04_truncation_is_task_dependent": _c4,
    "05_chains_move_more_than_answers": _c5,
    "06_distillation_recovers": _c6,
    "07_longer_reasoning": _c7,
    "08_what_truncation_saves": _c8,
    "09_read_or_process": _c0,
    "10_verdicts": lambda size: [],
}
