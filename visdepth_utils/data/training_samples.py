"""Samples to train on that no measurement uses: fresh scenes, or the other rows of a data set."""

from pathlib import Path

import numpy as np
import pandas as pd

from visdepth_utils.data.samples import WORLDS
from visdepth_utils.data.tasks import Sample, Task, load_task
from visdepth_utils.data.worlds import questions
from visdepth_utils.data.worlds.reasoning import reason
from visdepth_utils.data.worlds.world import DISTILL_SEEDS, draw_scene, render, scene_key


def training_samples(
    test: Task, n: int, seed: int = 0, source: str | Path | None = None, style: str | None = None
) -> list[Sample]:
    """Choose n samples of a task's kind, or as many as there are, whose images are not tested.

    Without ``source`` they are new scenes of the generator of the embedded worlds, none of which is
    in the held-out sets. ValueError: a source has no images besides those of the test.
    """
    if source is None:
        return _fresh(test.name, n, seed, style)
    tested = {sample.image_id for sample in test.samples}
    whole = load_task(test.name, seed=seed, source=source, style=style)
    rest = [sample for sample in whole.samples if sample.image_id not in tested]
    if not rest:
        raise ValueError(
            f"all {len(tested)} images of {source} with task {test.name!r} are tested, none is "
            "left to train on: lower n, or give a larger source"
        )
    order = np.random.default_rng(seed).permutation(len(rest))[:n]
    return [rest[i] for i in order]


def _fresh(task: str, n: int, seed: int, style: str | None) -> list[Sample]:
    """New pictures of the generator, with one question each."""
    kind = "charts" if task == "chart" else "shapes"
    used = _held_out(kind)
    samples: list[Sample] = []
    window = len(DISTILL_SEEDS) // 32  # a part of its own for each of 32 seeds, then again from 0
    start = seed % 32 * window
    for number in DISTILL_SEEDS[start : start + window]:
        scene = draw_scene(number, kind)
        if scene_key(scene) in used:
            continue
        used.add(scene_key(scene))
        rng = np.random.default_rng([number, 1])
        if task == "reason":
            asked = reason(scene, rng, style or "long")[0]
        else:
            asked = getattr(questions, task)(scene, rng)
        where = {"id": f"{task}-{number}", "image_id": f"{kind}-{number}"}
        samples.append(Sample(**where, images=(render(scene, number),), **vars(asked)))
        if len(samples) == n:
            break
    return samples


def _held_out(kind: str) -> set[str]:
    """Keys of the held-out scenes, drawn again from the seeds that are stored beside them."""
    table = pd.read_parquet(WORLDS / "images.parquet", columns=["kind", "seed"])
    seeds = table.loc[table["kind"] == kind, "seed"]
    return {scene_key(draw_scene(int(seed), kind)) for seed in seeds}
