"""Write the frozen held-out sets: `python -m training.minivlm.freeze` -> data/worlds/.

400 shapes worlds serve `mcq`, `vqa`, `caption` and `reason`, so that tasks are compared on the same
pictures; 400
charts serve `chart`. No scene of the training bank is among them, by ground truth, not only by
seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd

from training.minivlm.train import PICTURES, VALIDATION
from visdepth_utils.data.worlds import questions as Q
from visdepth_utils.data.worlds.reasoning import reason
from visdepth_utils.data.worlds.world import (
    HELD_OUT_SEEDS,
    TRAIN_SEEDS,
    VALIDATION_SEEDS,
    Scene,
    draw_scene,
    render,
    scene_key,
)

N = 400
TASKS = {"shapes": ("mcq", "vqa", "caption", "reason"), "charts": ("chart",)}


def held_out(kind: str, n: int) -> list[tuple[int, Scene]]:
    """The first `n` held-out seeds whose scenes occur nowhere in training, and only once."""
    used = {scene_key(draw_scene(s, kind)) for s in TRAIN_SEEDS[: PICTURES[kind]]}
    used |= {scene_key(draw_scene(s, kind)) for s in VALIDATION_SEEDS[:VALIDATION]}
    kept: list[tuple[int, Scene]] = []
    for seed in HELD_OUT_SEEDS:
        scene = draw_scene(seed, kind)
        if scene_key(scene) not in used:
            used.add(scene_key(scene))
            kept.append((seed, scene))
        if len(kept) == n:
            break
    return kept


def questions_of(task: str, scene: Scene, seed: int) -> list[Q.Question]:
    """The frozen questions of a scene: one, and for `reason` the same one in three styles."""
    rng = np.random.default_rng([seed, ("mcq", "vqa", "caption", "reason", "chart").index(task)])
    return reason(scene, rng) if task == "reason" else [getattr(Q, task)(scene, rng)]


def main() -> None:
    """Write images.parquet and one parquet per task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/worlds"))
    parser.add_argument("--n", type=int, default=N)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures, rows = [], {task: [] for tasks in TASKS.values() for task in tasks}
    for kind, tasks in TASKS.items():
        for i, (seed, scene) in enumerate(held_out(kind, args.n)):
            image_id = f"{kind}-{i:04d}"
            buffer = io.BytesIO()
            render(scene, seed).save(buffer, format="PNG", optimize=True)
            truth = json.dumps({k: v for k, v in dataclasses.asdict(scene).items() if v})
            image = {"bytes": buffer.getvalue(), "path": f"{image_id}.png"}
            pictures.append(
                {"image_id": image_id, "kind": kind, "image": image, "scene": truth, "seed": seed}
            )
            for task in tasks:
                for q in questions_of(task, scene, seed):
                    suffix = f"-{q.style}" if task == "reason" else ""
                    row = {
                        "id": f"{task}-{i:04d}{suffix}",
                        "image_id": image_id,
                        **dataclasses.asdict(q),
                    }
                    rows[task].append({**row, "choices": list(q.choices)})
    columns = [
        "id",
        "image_id",
        "task",
        "kind",
        "style",
        "prompt",
        "reference",
        "answer",
        "choices",
    ]
    pd.DataFrame(pictures).to_parquet(args.out / "images.parquet", index=False)
    for task, made in rows.items():
        pd.DataFrame(made)[columns].to_parquet(args.out / f"{task}.parquet", index=False)
        print(f"{task}: {len(made)} questions")


if __name__ == "__main__":
    main()
