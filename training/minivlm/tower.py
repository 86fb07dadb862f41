"""Stage 1: the vision tower learns what the scene holds, patch by patch; then features are cached.

The heads are thrown away afterwards. The tower is frozen from here on and shared by all sizes and
seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training.minivlm.lessons import patch_labels
from training.minivlm.optim import Optimiser, schedule
from visdepth_utils.data.worlds.world import (
    COLOURS,
    COLUMNS,
    ROWS,
    SHAPES,
    SIZES,
    Scene,
    draw_scene,
    render,
)

CLASSES = {
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "size": len(SIZES) + 1,
    "row": len(ROWS) + 1,
    "column": len(COLUMNS) + 1,
    "tens": 11,
    "ones": 11,
}


def picture_bank(seeds: range, kind: str) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and their pictures as uint8 (N, 3, 64, 64)."""
    scenes = [draw_scene(s, kind) for s in seeds]
    pixels = np.stack(
        [np.asarray(render(scene, s)) for scene, s in zip(scenes, seeds, strict=True)]
    )
    return scenes, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as the processor gives them: (x / 255 - 0.5) / 0.5."""
    return pixels.float() / 127.5 - 1.0


def tower_features(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What the projector sees: the last entry of the tower's hidden states, (B, 64, D)."""
    return tower(normalise(pixels), output_hidden_states=True).hidden_states[-1]


def train_tower(
    tower: nn.Module,
    banks: list[tuple[list[Scene], torch.Tensor]],
    steps: int,
    checkpoint: Path,
    log: Callable[[str], None],
    batch: int = 128,
) -> None:
    """Cross-entropy on `patch_labels` through linear heads; resumes from `checkpoint`."""
    scenes = [s for bank, _ in banks for s in bank]
    pixels = torch.cat([p for _, p in banks])
    labels = [patch_labels(s) for s in scenes]
    targets = {k: torch.from_numpy(np.stack([lab[k] for lab in labels])) for k in CLASSES}
    width = tower.config.hidden_size
    heads = nn.ModuleDict({k: nn.Linear(width, n) for k, n in CLASSES.items()})
    optimiser = Optimiser(
        [tower, nn.ModuleDict({"lm_head": heads})], muon_rate=0.02, adam_rate=2e-3
    )
    done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["step"]
    held = torch.arange(len(scenes))[::50]  # every fiftieth picture is kept for validation
    train = torch.tensor([i for i in range(len(scenes)) if i % 50])
    tower.train()
    start = time.time()
    for step in range(done, steps):
        rng = torch.Generator().manual_seed(step)
        pick = train[torch.randint(len(train), (batch,), generator=rng)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = tower_features(tower, pixels[pick])
            loss = sum(
                F.cross_entropy(
                    heads[k](features).float().flatten(0, 1), targets[k][pick].flatten()
                )
                for k in CLASSES
            )
        loss.backward()
        optimiser.step(schedule(step, steps))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            state = {
                "tower": tower.state_dict(),
                "heads": heads.state_dict(),
                "optimiser": optimiser.state_dict(),
            }
            torch.save({**state, "step": step + 1}, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            found = _patch_accuracy(
                tower, heads, pixels[held], {k: t[held] for k, t in targets.items()}
            )
            log(
                f"tower step {step + 1}/{steps} loss {loss.item():.3f} {found} "
                f"{time.time() - start:.0f} s"
            )


@torch.no_grad()
def _patch_accuracy(
    tower: nn.Module, heads: nn.ModuleDict, pixels: torch.Tensor, targets: dict
) -> str:
    """Accuracy per label over the patches that carry one."""
    tower.eval()
    features = tower_features(tower, pixels)
    tower.train()
    parts = []
    for k, head in heads.items():
        there = targets[k] > 0
        parts.append(f"{k} {(head(features).argmax(-1) == targets[k])[there].float().mean():.3f}")
    return " ".join(parts)


@torch.no_grad()
def cache_features(tower: nn.Module, pixels: torch.Tensor, batch: int = 256) -> torch.Tensor:
    """Features of all pictures, bfloat16 (N, 64, D)."""
    tower.eval()
    return torch.cat([tower_features(tower, p).to(torch.bfloat16) for p in pixels.split(batch)])


def _ridge(x: torch.Tensor, y: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (out, in) and bias of y = Wx + b by ridge regression; `share` of the mean variance."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    covariance = (x - mean_x).T @ (x - mean_x) / len(x)
    penalty = share * covariance.diagonal().mean() * torch.eye(len(covariance))
    cross = (x - mean_x).T @ (y - mean_y) / len(x)
    weight = torch.linalg.solve(covariance + penalty, cross).T
    return weight, mean_y - weight @ mean_x


def _words_of_patches(
    scenes: list[Scene],
    vector: Callable[[str], torch.Tensor],
    words: dict[str, list[str]],
    ground: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (N*64, C) as 0/1 and the sum (N*64, D) of the vectors of the labels' words."""
    found = [patch_labels(s) for s in scenes]
    labels, total = [], torch.zeros(())
    for k, names in words.items():
        index = torch.from_numpy(np.concatenate([f[k] for f in found]))
        hot = F.one_hot(index, CLASSES[k])[:, 1:].float()
        rows = [vector(w) if w else torch.zeros_like(ground) for w in names]
        labels.append(hot)
        total = total + hot @ torch.stack(rows)
    empty = labels[0].sum(-1, keepdim=True) == 0
    return torch.cat(labels, 1), torch.where(empty, ground, total)


PATCH_WORDS = {
    "colour": list(COLOURS),
    "shape": list(SHAPES),
    "size": list(SIZES),
    "row": list(ROWS),
    "column": list(COLUMNS),
    "tens": [""] + [str(d) for d in range(1, 10)],
    "ones": [f"##{d}" for d in range(10)],
}


@torch.no_grad()
def start_projector(
    model: nn.Module,
    cached: dict[str, Any],
    ids_of: Callable[[str], list[int]],
    seed: int,
    words: dict[str, list[str]] = PATCH_WORDS,
    ground: str = "<image>",
    as_long_as_words: bool = False,
) -> None:
    """Initialise the projector so that a patch enters as the words for what it shows.

    The tower's features have a large common part and a norm many times a word's. Left so, no layer
    could change an image token by more than a sliver (its update ratio would be an artefact
    of the scale), and what tells patches apart would be buried. So the first layer starts from
    linear probes of the features (with a share of the whitened features beside), the second from
    the ridge regression of its outputs on the summed word embeddings of each patch's labels.

    Args:
        model: The LLaVA whose projector is set, in place.
        cached: Scenes and features as `train.prepare_tower` gives them.
        ids_of: The token ids of a word of `words`.
        seed: Of the random mixing of probes.
        words: The word for each label of `patch_labels` from 1 on; "" for none.
        ground: The word for a patch that shows nothing; it gets the length of a mean word.
        as_long_as_words: Shrink the sums to the mean length of a word. A decoder that is trained
            with them from the start does without; one that knows words only does not.
    """
    kinds = ("shapes", "charts")
    features = torch.cat(
        [cached["features"][k]["train"][:1500].float().flatten(0, 1) for k in kinds]
    )
    scenes = [s for k in kinds for s in cached["scenes"][k]["train"][:1500]]
    embedding = model.get_input_embeddings().weight.detach().float().cpu()
    middle = embedding.mean(0)
    length = (embedding - middle).norm(dim=-1).mean()
    vector = lambda word: (embedding[ids_of(word)] - middle).sum(0)  # noqa: E731
    nothing = vector(ground)
    labels, sums = _words_of_patches(scenes, vector, words, nothing * length / nothing.norm())
    targets = middle + sums * (length / sums.norm(dim=-1).mean() if as_long_as_words else 1.0)
    probe, offset = _ridge(features, labels, 1e-4)
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh((features - mean).T.cov())
    whiten = vectors @ torch.diag((values + 0.05 * values.mean()).rsqrt()) @ vectors.T
    rng = torch.Generator().manual_seed(seed)
    projector = model.model.multi_modal_projector
    first, second = projector.linear_1, projector.linear_2
    mixing = torch.randn(first.out_features, len(probe), generator=rng)
    shape = (max(first.out_features, len(whiten)), len(whiten))
    rotation = torch.linalg.qr(torch.randn(shape, generator=rng))[0][: first.out_features]
    weight = mixing @ probe + 0.2 * rotation @ whiten
    first.weight.copy_(weight)
    first.bias.copy_(mixing @ offset - 0.2 * rotation @ whiten @ mean)
    hidden = F.gelu(first(features.to(first.weight)).float().cpu())
    weight, offset = _ridge(hidden, targets, 1e-3)
    second.weight.copy_(weight)
    second.bias.copy_(offset)
