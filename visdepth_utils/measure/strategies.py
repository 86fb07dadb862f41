"""Decoding strategies on a truncated model: greedy, sampled, nucleus, beam search.

The model's own ``generate`` runs under hooks, so every strategy of transformers is exactly its own.
"""

import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import LABELS, Sample
from visdepth_utils.data.tasks import Task, samples_and_budget
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.recovery import adapted
from visdepth_utils.measure.scores import score
from visdepth_utils.models.generation import decode_answers, generated
from visdepth_utils.models.vlm import VLM

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "temperature": {"do_sample": True, "temperature": 0.7, "top_p": 1.0, "top_k": 0},
    "top-p": {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0},
    "beam": {"do_sample": False, "num_beams": 4},
}

COLUMNS = (*LABELS, "depth", "strategy", "seed", "output", "score")


def decode(
    vlm: VLM,
    task: Task | Sequence[Sample],
    *,
    depth: int | None = None,
    mode: str = "remove",
    adapter: str | Path | None = None,
    strategies: Sequence[str] = tuple(STRATEGIES),
    seeds: Sequence[int] = (0,),
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Answer samples with image tokens seen by the first ``depth`` layers only.

    None is L, the whole model, run without hooks. Each strategy of ``strategies`` runs; the sampled
    ones under every seed, the others once, under the first. What is drawn for a batch depends on
    the seed and on its first sample, not on the batches before it. ``adapter``: folder of one to
    answer with, see ``recovery.adapted``. A beam search runs as many rows as it has beams for each
    sample. Other arguments as in ``truncation_sweep``.

    Returns:
        One row per sample, strategy and seed: ``sample, image, task, kind, style, depth, strategy,
        seed, output, score`` (the task's own, 0..1).

    Raises:
        FileNotFoundError: If the folder holds no adapter in safetensors.
        ValueError: Unknown strategy, no seed, no budget; else as ``truncated`` and ``adapted``.
    """
    if bad := [name for name in strategies if name not in STRATEGIES]:
        raise ValueError(f"unknown strategy {bad[0]!r}: use some of {', '.join(STRATEGIES)}")
    if not seeds:
        raise ValueError("no seeds given: sampled strategies need at least one")
    samples, budget = samples_and_budget(vlm, task, max_new_tokens)
    depth = vlm.n_layers if depth is None else depth
    seeds_of = {True: seeds, False: seeds[:1]}
    runs = [(n, seed) for n in strategies for seed in seeds_of[STRATEGIES[n]["do_sample"]]]
    rows = []
    with adapted(vlm, adapter) if adapter else nullcontext():
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            for i, (name, seed) in enumerate(runs, 1):
                drawn = zlib.crc32(f"{seed} {part[0].id}".encode())
                outputs = _generate(vlm, part, depth, mode, name, drawn, budget)
                same = {"depth": depth, "strategy": name, "seed": seed}
                for s, text in zip(part, outputs, strict=True):
                    rows.append({**s.labels(), **same, "output": text, "score": score(s, text)})
                if progress:
                    progress(start + len(part) * i // len(runs), len(samples), "decode")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _generate(
    vlm: VLM,
    samples: Sequence[Sample],
    depth: int,
    mode: str,
    strategy: str,
    seed: int,
    budget: int,
) -> list[str]:
    """Outputs of one batch; the state of torch's generators is as before afterwards."""
    options = STRATEGIES[strategy]
    beams = options.get("num_beams", 1)
    enc = vlm.encode(samples)
    cut = nullcontext()
    if depth != vlm.n_layers:
        # generate runs every beam as a row of its own, those of one sample side by side.
        spread = enc if beams == 1 else vlm.encode([s for s in samples for _ in range(beams)])
        cut = truncated(vlm, spread, depth, mode)
    devices = [vlm.device] if vlm.device.type == "cuda" else []
    with torch.random.fork_rng(devices), cut:
        torch.manual_seed(seed)
        return decode_answers(vlm, generated(vlm, enc, budget, **options).tolist())
