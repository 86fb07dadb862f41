"""Train an embedded model: `python -m visdepth_utils.minivlm.train --size base --seed 0`.

Staged as LLaVA's: (1) vision tower on what the scene holds, (2) decoder on scenes *in words*, (3) projector on
the frozen decoder, (4) joint tuning of projector and decoder at a smaller rate. Text-only and blind prompts stay in every
stage. Each stage checkpoints and resumes; batches are a function of (seed, stage, step), so a killed run
repeats nothing and changes nothing. bf16 autocast on the CPU or on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from visdepth_utils.minivlm.optim import Optimiser, schedule
from visdepth_utils.minivlm.packing import Batch, pack
from visdepth_utils.minivlm.recipe import SIZES, build_model, build_processor
from visdepth_utils.minivlm.tower import cache_features, picture_bank, train_tower
from visdepth_utils.minivlm.world import TRAIN_SEEDS, VALIDATION_SEEDS, Scene

WORK = Path("build/minivlm")
TOWER_STEPS = 700
PICTURES = {"shapes": 20_000, "charts": 12_000}
VALIDATION = 256


@dataclass(frozen=True)
class Stage:
    """One stage of the decoder's training.

    `rows` and `length`: rows per step and tokens per row for shapes and charts. `modes`: shares of rows with the
    picture, with the scene in words, and blind. `trains`: "decoder", "projector" or "both".
    """

    name: str
    steps: int
    muon_rate: float
    adam_rate: float
    modes: tuple[float, float, float]
    trains: str
    rows: tuple[int, int] = (8, 4)
    length: tuple[int, int] = (448, 288)


STAGES = {
    "base": (
        Stage("text", 1200, 0.02, 2e-3, (0.0, 0.96, 0.04), "decoder", length=(384, 224)),
        Stage("align", 150, 0.02, 2e-3, (1.0, 0.0, 0.0), "projector"),
        Stage("joint", 3000, 0.012, 1.2e-3, (0.88, 0.08, 0.04), "both"),
    ),
    "small": (
        Stage("text", 1000, 0.02, 2e-3, (0.0, 0.96, 0.04), "decoder", length=(384, 224)),
        Stage("align", 150, 0.02, 2e-3, (1.0, 0.0, 0.0), "projector"),
        Stage("joint", 2400, 0.012, 1.2e-3, (0.88, 0.08, 0.04), "both"),
    ),
}


def prepare_tower(log: Any) -> dict[str, Any]:
    """Stage 1 and the feature cache, once for all sizes and seeds: `WORK/features.pt`."""
    target = WORK / "features.pt"
    if not target.exists():
        banks = {}
        for kind, n in PICTURES.items():
            seeds = {"train": TRAIN_SEEDS[:n], "validation": VALIDATION_SEEDS[:VALIDATION]}
            banks[kind] = {part: picture_bank(s, kind) for part, s in seeds.items()}
        model = build_model("base", 0, build_processor().tokenizer)
        model.set_attn_implementation("eager")  # at 64 tokens several times faster backward than the fused kernel
        tower = model.model.vision_tower
        train_tower(tower, [b["train"] for b in banks.values()], TOWER_STEPS, WORK / "tower.pt", log)
        features = {k: {p: cache_features(tower, pixels) for p, (_, pixels) in b.items()} for k, b in banks.items()}
        torch.save({"tower": tower.state_dict(), "features": features}, target.with_suffix(".tmp"))
        target.with_suffix(".tmp").replace(target)
    cached = torch.load(target, mmap=True, weights_only=True)
    from visdepth_utils.minivlm.world import draw_scene

    cached["scenes"] = {
        kind: {
            "train": [draw_scene(s, kind) for s in TRAIN_SEEDS[:n]],
            "validation": [draw_scene(s, kind) for s in VALIDATION_SEEDS[:VALIDATION]],
        }
        for kind, n in PICTURES.items()
    }
    return cached


def hidden_states(model: nn.Module, decoder: Any, batch: Batch, features: torch.Tensor) -> torch.Tensor:
    """Final hidden states (B, S, D) of a packed batch; `features` are the bank's tower outputs."""
    states = model.get_input_embeddings()(batch.ids)
    rows = batch.image >= 0
    if rows.any():
        projected = model.model.multi_modal_projector(features[batch.image[rows]].float())
        at = (batch.ids == model.config.image_token_id)[..., None].expand_as(states)
        states = states.masked_scatter(at, projected.to(states.dtype))
    out = decoder(
        inputs_embeds=states, attention_mask=batch.mask(), position_ids=batch.positions, use_cache=False
    )
    return out.last_hidden_state


def loss_of(model: nn.Module, decoder: Any, batch: Batch, features: torch.Tensor, prompt_weight: float) -> torch.Tensor:
    """Weighted next-token loss on the answers, plus `prompt_weight` times that on all other text."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = hidden_states(model, decoder, batch, features)[:, :-1]
        logits = model.lm_head(states).float()
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(weights)
    loss = (losses * weights).sum() / weights.sum()
    if prompt_weight:  # within one segment only, so that a turn is not asked to predict the next turn
        inside = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (weights == 0) & (batch.segments[:, 1:] >= 0)
        loss = loss + prompt_weight * (losses * inside).sum() / inside.sum()
    return loss


@torch.no_grad()
def teacher_forced(model: nn.Module, decoder: Any, batches: list[tuple[Batch, torch.Tensor]]) -> dict[str, float]:
    """Share of turns whose every answer token is the most likely one: equal to greedy exact match."""
    right: dict[str, list[float]] = defaultdict(list)
    for batch, features in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            best = model.lm_head(hidden_states(model, decoder, batch, features)).argmax(-1)
        hit = torch.zeros_like(batch.ids, dtype=torch.bool)
        hit[:, 1:] = best[:, :-1] == batch.ids[:, 1:]
        for b, questions in enumerate(batch.labels):
            for k, q in enumerate(questions):
                ok = float(hit[b][batch.turns[b] == k].all())
                right[q.task if q.task != "reason" else f"reason-{q.style}"].append(ok)
                if q.task == "reason":
                    right[f"{q.kind}-{q.style}"].append(ok)
    return {k: round(float(np.mean(v)), 3) for k, v in sorted(right.items())}


class Batches:
    """Batches of a stage as a function of the step, so that resuming needs no random state."""

    def __init__(self, stage: Stage, seed: int, cached: dict[str, Any], tokenizer: Any) -> None:
        self.stage, self.seed, self.cached, self.tokenizer = stage, seed, cached, tokenizer

    def draw(self, kind: str, step: int, part: str = "train", modes: tuple | None = None) -> tuple[Batch, torch.Tensor]:
        """One micro-batch of a kind of world, with the feature bank it indexes."""
        which = ("shapes", "charts").index(kind)
        name = sum(map(ord, self.stage.name))
        rng = np.random.default_rng([self.seed, name, step, which, part == "train"])
        scenes: list[Scene] = self.cached["scenes"][kind][part]
        picked = [int(i) for i in rng.integers(0, len(scenes), self.stage.rows[which])]
        shares = modes or self.stage.modes
        drawn = [("image", "text", "blind")[int(i)] for i in rng.choice(3, len(picked), p=shares)]
        rows = [scenes[i] for i in picked]
        batch = pack(rows, picked, drawn, self.tokenizer, self.stage.length[which], rng)
        return batch, self.cached["features"][kind][part]


def run_stage(model: nn.Module, stage: Stage, seed: int, cached: dict, tokenizer: Any, folder: Path, log: Any) -> None:
    """Train one stage, or load it if it is finished; checkpoints every 100 steps."""
    checkpoint = folder / f"{stage.name}.pt"
    modules = {"decoder": [model.model.language_model, model.lm_head], "projector": [model.model.multi_modal_projector]}
    modules["both"] = modules["projector"] + modules["decoder"]
    model.requires_grad_(False)
    for module in modules[stage.trains]:
        module.requires_grad_(True)
    optimiser = Optimiser(modules[stage.trains], stage.muon_rate, stage.adam_rate)
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        done = state["step"]
        if done >= stage.steps:
            return
        optimiser.load_state_dict(state["optimiser"])
    decoder = torch.compile(model.model.language_model, dynamic=False)
    batches = Batches(stage, seed, cached, tokenizer)
    seen = (1.0, 0.0, 0.0) if stage.modes[0] else (0.0, 1.0, 0.0)
    held = [batches.draw(k, 10**6 + i, "validation", seen) for i in range(6) for k in ("shapes", "charts")]
    start, losses = time.time(), []
    model.train()
    for step in range(done, stage.steps):
        for kind, share in (("shapes", 0.75), ("charts", 0.25)):
            batch, features = batches.draw(kind, step)
            loss = share * loss_of(model, decoder, batch, features, 0.1 if stage.name == "text" else 0.0)
            if not torch.isfinite(loss):
                raise RuntimeError(f"stage {stage.name} step {step}: loss is {loss.item()}; lower the rates")
            loss.backward()
            losses.append(loss.item())
        optimiser.step(schedule(step, stage.steps))
        if (step + 1) % 50 == 0:
            pace = (step + 1 - done) / (time.time() - start)
            left = (stage.steps - step - 1) / pace / 60
            log(f"{stage.name} {step + 1}/{stage.steps} loss {2 * np.mean(losses[-100:]):.3f} {pace:.2f} steps/s {left:.0f} min left")
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        if (step + 1) % 250 == 0 or step + 1 == stage.steps:
            model.eval()
            log(f"{stage.name} {step + 1} validation {json.dumps(teacher_forced(model, decoder, held))}")
            model.train()


def main() -> None:
    """Command line: train all stages of one model and save it in the hub's layout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=None, help="default: data/minivlm/SIZE, with -seedN when N > 0")
    parser.add_argument("--tower-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = args.size + (f"-seed{args.seed}" if args.seed else "")
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.time()

    def log(line: str) -> None:
        text = f"{time.strftime('%H:%M:%S')} {name} {line}"
        print(text, flush=True)
        with (folder / "log.txt").open("a") as file:
            file.write(text + "\n")

    cached = prepare_tower(log)
    if args.tower_only:
        return
    processor = build_processor()
    model = build_model(args.size, args.seed, processor.tokenizer)
    model.model.vision_tower.load_state_dict(cached["tower"])
    for stage in STAGES[args.size]:
        run_stage(model, stage, args.seed, cached, processor.tokenizer, folder, log)
    out = args.out or Path("data/minivlm") / name
    model.requires_grad_(True).to(torch.bfloat16).eval().save_pretrained(out, max_shard_size="15MB")
    processor.save_pretrained(out)
    recipe = {"size": asdict(SIZES[args.size]), "seed": args.seed, "stages": [asdict(s) for s in STAGES[args.size]]}
    recipe |= {"tower_steps": TOWER_STEPS, "pictures": PICTURES, "minutes": round((time.time() - began) / 60, 1)}
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    log(f"saved {out}")


if __name__ == "__main__":
    main()
