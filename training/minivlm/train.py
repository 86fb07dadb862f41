"""Train an embedded model: `python -m training.minivlm.train --size base --seed 0`.

Staged as LLaVA's: (1) vision tower on what the scene holds, (2) decoder on scenes *in words*, (3)
projector on the frozen decoder, (4) joint tuning of projector and decoder at a smaller rate. Every
stage checkpoints in `build/minivlm/` and resumes. On CPUs one worker per core is fastest:
`torchrun --nproc-per-node 2 -m training.minivlm.train --threads 1`, which is what
`make train-minivlm` runs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import LlavaForConditionalGeneration

from training.minivlm.recipe import SIZES, build_model, build_processor
from training.minivlm.stages import STAGES, run_stage
from training.minivlm.tower import cache_features, picture_bank, train_tower
from visdepth_utils.common.files import locked
from visdepth_utils.data.worlds.world import TRAIN_SEEDS, VALIDATION_SEEDS, draw_scene

WORK = Path("build/minivlm")
TOWER_STEPS = 700
PICTURES = {"shapes": 20_000, "charts": 12_000}
VALIDATION = 256


def prepare_tower(log: Callable[[str], None], shared: Path | None = None) -> dict[str, Any]:
    """Stage 1 and the feature cache, once for all sizes and seeds: `WORK/features.pt`.

    Args:
        log: Takes a line.
        shared: A checkpoint whose vision tower is used; without it one is trained.
    """
    target = WORK / "features.pt"
    with locked(target):  # two trainings may start at once
        if not target.exists():
            _make_features(target, log, shared)
    cached = torch.load(target, mmap=True, weights_only=True)
    cached["scenes"] = {
        kind: {
            "train": [draw_scene(s, kind) for s in TRAIN_SEEDS[:n]],
            "validation": [draw_scene(s, kind) for s in VALIDATION_SEEDS[:VALIDATION]],
        }
        for kind, n in PICTURES.items()
    }
    return cached


def _make_features(target: Path, log: Callable[[str], None], shared: Path | None) -> None:
    """Draw the pictures, train or load the tower, store it with its features of all of them."""
    banks = {}
    for kind, n in PICTURES.items():
        seeds = {"train": TRAIN_SEEDS[:n], "validation": VALIDATION_SEEDS[:VALIDATION]}
        banks[kind] = {part: picture_bank(s, kind) for part, s in seeds.items()}
    model = build_model("base", 0, build_processor().tokenizer)
    model.set_attn_implementation("eager")  # on CPUs faster to train than the fused kernel
    tower = model.model.vision_tower
    if shared:
        trained = LlavaForConditionalGeneration.from_pretrained(shared, dtype=torch.float32)
        tower.load_state_dict(trained.model.vision_tower.state_dict())
    else:
        seen = [b["train"] for b in banks.values()]
        train_tower(tower, seen, TOWER_STEPS, WORK / "tower.pt", log)
    features = {
        k: {p: cache_features(tower, pixels) for p, (_, pixels) in b.items()}
        for k, b in banks.items()
    }
    torch.save({"tower": tower.state_dict(), "features": features}, target.with_suffix(".tmp"))
    target.with_suffix(".tmp").replace(target)


def main() -> None:
    """Command line: train all stages of one model and save it in the hub's layout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--out", type=Path, default=None, help="default: data/minivlm/SIZE, with -seedN when N > 0"
    )
    parser.add_argument("--tower", type=Path, help="checkpoint whose vision tower is shared")
    parser.add_argument("--tower-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    name = args.size + (f"-seed{args.seed}" if args.seed else "")
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)

    def log(line: str) -> None:
        if dist.is_initialized() and dist.get_rank():
            return
        text = f"{time.strftime('%H:%M:%S')} {name} {line}"
        print(text, flush=True)
        with (folder / "log.txt").open("a") as file:
            file.write(text + "\n")

    cached = prepare_tower(log, args.tower)
    if args.tower_only:
        return
    processor = build_processor()
    model = build_model(args.size, args.seed, processor.tokenizer)
    model.set_attn_implementation("eager")
    model.model.vision_tower.load_state_dict(cached["tower"])
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    seconds = sum(
        run_stage(model, stage, args.seed, cached, processor.tokenizer, folder, log)
        for stage in STAGES[args.size]
    )
    if dist.is_initialized():
        dist.barrier()
        if dist.get_rank():
            return
    out = args.out or Path("data/minivlm") / name
    model.requires_grad_(True).to("cpu", torch.bfloat16).eval().save_pretrained(
        out, max_shard_size="15MB"
    )
    processor.save_pretrained(out)
    cuda = torch.cuda.is_available()
    workers = args.threads * (dist.get_world_size() if dist.is_initialized() else 1)
    recipe = {
        "size": asdict(SIZES[args.size]),
        "seed": args.seed,
        "stages": [asdict(s) for s in STAGES[args.size]],
        "tower_steps": TOWER_STEPS,
        "tower": f"of {args.tower}" if args.tower else "trained in this run",
        "pictures": PICTURES,
        "minutes": round(seconds / 60, 1),
        "hardware": torch.cuda.get_device_name() if cuda else f"{workers} CPU core(s)",
    }
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    log(f"saved {out}")


if __name__ == "__main__":
    main()
