"""The decoder's training stages: what each trains, on which batches, at which rates.

Text first, then the projector on the frozen decoder, then both at a smaller rate; text-only and
blind prompts stay in every stage. Batches are a function of (seed, stage, step), so a killed run
repeats nothing and changes nothing. bf16 autocast where it is faster than fp32.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from training.minivlm.optim import Optimiser, schedule
from training.minivlm.packing import Batch, Chat, pack, word_chat
from training.minivlm.tower import start_projector
from visdepth_utils.data.worlds.world import Scene


@dataclass(frozen=True)
class Stage:
    """One stage of the decoder's training.

    `rows` and `length`: rows per step and tokens per row for shapes and charts. `modes`: shares of
    rows with the picture, with the scene in words, and blind. `trains`: "decoder", "projector" or
    "both". `mix`: the questions, of `packing.MIXES`. `decay`: share of the steps over which rates
    fall.
    """

    name: str
    steps: int
    muon_rate: float
    adam_rate: float
    modes: tuple[float, float, float]
    trains: str
    mix: str = "all"
    decay: float = 0.4
    rows: tuple[int, int] = (8, 4)
    length: tuple[int, int] = (448, 288)


_IMAGES, _WORDS = (1.0, 0.0, 0.0), (0.0, 0.96, 0.04)
_MIXED = (0.9, 0.06, 0.04)
_SHORT = {"rows": (4, 2), "length": (384, 288)}  # many small steps, until look-ups start to work
_RECIPE = (
    Stage("text", 500, 0.015, 2e-3, _WORDS, "decoder", "find", length=(288, 160)),
    Stage("align", 60, 0.01, 1e-2, _IMAGES, "projector", "find", **_SHORT),
    Stage("find", 600, 0.01, 2e-3, _MIXED, "both", "find", 0.0, **_SHORT),
    Stage("lookup", 600, 0.01, 2e-3, _MIXED, "both", "lookups", 0.0, **_SHORT),
    Stage("joint", 1000, 0.01, 2e-3, _MIXED, "both"),
    Stage("chains", 400, 0.008, 1.5e-3, _MIXED, "both", "chains", 0.6),
    Stage("finish", 300, 0.008, 1.5e-3, _MIXED, "both", "chains", 0.6),
)
_SHARES = {
    "text": 400,
    "align": 60,
    "find": 500,
    "lookup": 500,
    "joint": 800,
    "chains": 200,
    "finish": 200,
}
STAGES = {"base": _RECIPE, "small": tuple(replace(s, steps=_SHARES[s.name]) for s in _RECIPE)}


@lru_cache
def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 multiplies faster than float32 here: not on a CPU that must emulate it."""
    if device.type != "cpu":
        return True
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        a @ b
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        seconds[dtype] = time.perf_counter() - start
    return seconds[torch.bfloat16] < seconds[torch.float32]


def hidden_states(
    model: nn.Module, decoder: Any, batch: Batch, features: torch.Tensor
) -> torch.Tensor:
    """Final hidden states (B, S, D) of a packed batch; `features` is the tower's bank."""
    states = model.get_input_embeddings()(batch.ids)
    rows = batch.image >= 0
    if rows.any():
        projected = model.model.multi_modal_projector(
            features[batch.image[rows].cpu()].to(states.device).float()
        )
        at = (batch.ids == model.config.image_token_id)[..., None].expand_as(states)
        states = states.masked_scatter(at, projected.to(states.dtype))
    out = decoder(
        inputs_embeds=states,
        attention_mask=batch.mask(
            torch.bfloat16 if torch.is_autocast_enabled(states.device.type) else states.dtype
        ),
        position_ids=batch.positions,
        use_cache=False,
    )
    return out.last_hidden_state


def loss_of(
    model: nn.Module, decoder: Any, batch: Batch, features: torch.Tensor, prompt_weight: float
) -> torch.Tensor:
    """Next-token loss on the answers, plus `prompt_weight` times that on all other text."""
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    inside = weights > 0
    if prompt_weight:  # within a segment, so that a turn is not asked to predict the next turn
        inside |= (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] >= 0)
    with torch.autocast(batch.ids.device.type, torch.bfloat16, fast_bfloat16(batch.ids.device)):
        states = hidden_states(model, decoder, batch, features)[:, :-1][inside]
        logits = model.lm_head(states).float()
    losses = F.cross_entropy(logits, targets[inside], reduction="none")
    asked = weights[inside]
    loss = (losses * asked).sum() / asked.sum()
    if prompt_weight:
        loss = loss + prompt_weight * losses[asked == 0].mean()
    return loss


@torch.no_grad()
def teacher_forced(
    model: nn.Module, decoder: Any, batches: list[tuple[Batch, torch.Tensor]]
) -> dict[str, float]:
    """Share of turns whose answer tokens are all the most likely: greedy exact match."""
    right: dict[str, list[float]] = defaultdict(list)
    for batch, features in batches:
        asked = batch.turns[:, 1:] >= 0
        with torch.autocast(batch.ids.device.type, torch.bfloat16, fast_bfloat16(batch.ids.device)):
            states = hidden_states(model, decoder, batch, features)[:, :-1][asked]
            best = model.lm_head(states).argmax(-1)
        hit = torch.zeros_like(batch.ids, dtype=torch.bool)
        hit[:, 1:][asked] = best == batch.ids[:, 1:][asked]
        for b, questions in enumerate(batch.labels):
            for k, q in enumerate(questions):
                ok = float(hit[b][batch.turns[b] == k].all())
                task = q.task if q.task != "reason" else f"reason-{q.style}"
                right[task].append(ok)
                right[f"{task}:{q.kind}"].append(ok)
    return {k: round(float(np.mean(v)), 3) for k, v in sorted(right.items())}


class Batches:
    """Batches of a stage as a function of the step, so that resuming needs no random state."""

    def __init__(
        self,
        stage: Stage,
        seed: int,
        cached: dict[str, Any],
        chat: Chat,
        device: torch.device,
        shared: bool = True,
    ) -> None:
        """Keep what a batch is made from; `cached` is what `prepare_tower` gives.

        Several workers share the rows of a batch, unless `shared` is false.
        """
        self.stage, self.seed, self.cached, self.chat = stage, seed, cached, chat
        self.device, self.shared = device, shared

    def draw(
        self, kind: str, step: int, part: str = "train", modes: tuple | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """One micro-batch of a kind of world, with the feature bank it indexes."""
        which = ("shapes", "charts").index(kind)
        name = sum(map(ord, self.stage.name))
        several = self.shared and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        rng = np.random.default_rng([self.seed, name, step, which, part == "train", rank])
        scenes: list[Scene] = self.cached["scenes"][kind][part]
        picked = [int(i) for i in rng.integers(0, len(scenes), self.stage.rows[which] // world)]
        shares = modes or self.stage.modes
        drawn = [("image", "text", "blind")[int(i)] for i in rng.choice(3, len(picked), p=shares)]
        rows = [scenes[i] for i in picked]
        length, mix = self.stage.length[which], self.stage.mix
        batch = pack(rows, picked, drawn, self.chat, length, rng, mix)
        return batch.to(self.device), self.cached["features"][kind][part]


def run_stage(
    model: nn.Module,
    stage: Stage,
    seed: int,
    cached: dict[str, Any],
    tokenizer: Any,
    folder: Path,
    log: Callable[[str], None],
    compiled: bool = True,
) -> float:
    """Train one stage, or load it if it is finished; checkpoints every 100 steps.

    Args:
        model: The model, changed in place.
        stage: What to do.
        seed: Of the batches.
        cached: Scenes and tower features, from `tower.prepare`.
        tokenizer: The embedded tokenizer.
        folder: Where the checkpoint `STAGE.pt` lies.
        log: Takes a line.
        compiled: Compile the decoder if there is a compiler: faster after a minute, else the same.

    Returns:
        Seconds of training, those of earlier, killed runs included.
    """
    checkpoint = folder / f"{stage.name}.pt"
    modules = {
        "decoder": [model.model.language_model, model.lm_head],
        "projector": [model.model.multi_modal_projector],
    }
    modules["both"] = modules["projector"] + modules["decoder"]
    model.requires_grad_(False)
    for module in modules[stage.trains]:
        module.requires_grad_(True)
    if stage.trains == "projector" and not checkpoint.exists():
        start_projector(model, cached, lambda word: [tokenizer.convert_tokens_to_ids(word)], seed)
    optimiser = Optimiser(
        modules[stage.trains], stage.muon_rate, stage.adam_rate, gentle=modules["projector"]
    )
    done, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=model.device)
        model.load_state_dict(state["model"])
        done, spent = state["step"], state["seconds"]
        if done >= stage.steps:
            return spent
        optimiser.load_state_dict(state["optimiser"])
    decoder = model.model.language_model
    # The CPU compiler needs g++; without it training is slower, not different.
    if compiled and stage.steps >= 200 and (model.device.type == "cuda" or shutil.which("g++")):
        decoder = torch.compile(decoder, dynamic=False)
    batches = Batches(stage, seed, cached, word_chat(tokenizer), model.device)
    seen = (1.0, 0.0, 0.0) if stage.modes[0] else (0.0, 1.0, 0.0)
    held = [
        batches.draw(k, 10**6 + i, "validation", seen)
        for i in range(6)
        for k in ("shapes", "charts")
    ]
    start, losses = time.time(), []
    model.train()
    for step in range(done, stage.steps):
        for kind, share in (("shapes", 0.75), ("charts", 0.25)):
            batch, features = batches.draw(kind, step)
            loss = share * loss_of(
                model, decoder, batch, features, 0.1 if stage.name == "text" else 0.0
            )
            if not torch.isfinite(loss):
                raise RuntimeError(
                    f"stage {stage.name} step {step}: loss is {loss.item()}; lower the rates"
                )
            loss.backward()
            losses.append(loss.item())
        optimiser.step(schedule(step, stage.steps, decay=stage.decay))
        if dist.is_initialized() and dist.get_rank():
            continue  # one worker reports and saves; all hold the same weights
        if (step + 1) % 50 == 0:
            pace = (step + 1 - done) / (time.time() - start)
            left = (stage.steps - step - 1) / pace / 60
            log(
                f"{stage.name} {step + 1}/{stage.steps} loss {2 * np.mean(losses[-100:]):.3f} "
                f"{pace:.2f} steps/s {left:.0f} min left"
            )
        if (step + 1) % 100 == 0 or step + 1 == stage.steps:
            state = {
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
                "seconds": spent + time.time() - start,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
        if (step + 1) % 250 == 0 or step + 1 == stage.steps:
            model.eval()
            found = json.dumps(teacher_forced(model, model.model.language_model, held))
            log(f"{stage.name} {step + 1} validation {found}")
            model.train()
    return spent + time.time() - start
