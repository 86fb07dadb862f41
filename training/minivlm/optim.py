"""Muon on the matrices, AdamW on the rest, with one warm-up / hold / decay schedule."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

# Muon's updates have the same size however large a matrix has grown. Without a strong decay the
# first layer's writes reached 800 times an embedding, and later layers no longer matter.
MUON_DECAY = 0.2


def schedule(step: int, steps: int, warmup: int = 100, decay: float = 0.4) -> float:
    """Rate factor: linear warm-up, hold, linear decay to 2% over the last share `decay`."""
    left = (steps - step) / (decay * steps) if decay else 1.0
    return min(1.0, (step + 1) / warmup, max(0.02, left))


def average_and_clip(parameters: list[nn.Parameter]) -> None:
    """Average the gradients over workers, if there are several, and clip them to norm 1."""
    if dist.is_initialized():
        for p in parameters:  # a worker whose few rows show no picture has no gradient
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        flat = torch.cat([p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([p.numel() for p in parameters])
        for p, part in zip(parameters, parts, strict=True):
            p.grad.copy_(part.view_as(p))
    nn.utils.clip_grad_norm_(parameters, 1.0)


class Optimiser:
    """`torch.optim.Muon` for hidden matrices and AdamW for embeddings, heads, norms and biases.

    Args:
        modules: what is trained; parameters with `requires_grad` False are left out.
        muon_rate: rate of the matrices (Muon's update has unit scale).
        adam_rate: rate of everything else.
        gentle: trained by AdamW at a tenth of `adam_rate`, matrices too. Muon moves a matrix by the
            same amount whatever its scale, and would blow a projector's output up to a hundred
            times the size of a word within a stage.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        muon_rate: float,
        adam_rate: float,
        gentle: Iterable[nn.Module] = (),
    ) -> None:
        """Sort the parameters; see the class."""
        slow = [p for module in gentle for p in module.parameters() if p.requires_grad]
        matrices, rest, seen = [], [], {id(p) for p in slow}
        for module in modules:
            for name, p in module.named_parameters():
                if not p.requires_grad or id(p) in seen:
                    continue
                seen.add(id(p))
                hidden = p.ndim == 2 and "embed" not in name and "lm_head" not in name
                (matrices if hidden else rest).append(p)
        self.parameters = matrices + rest + slow
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(
                torch.optim.Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=MUON_DECAY)
            )
        for some, rate in ((rest, adam_rate), (slow, adam_rate / 10)):
            if some:
                self.parts.append(
                    torch.optim.AdamW(some, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
                )
        for part in self.parts:
            for group in part.param_groups:
                group["peak"] = group["lr"]

    def step(self, factor: float) -> None:
        """Average over workers, clip to norm 1, step with rates scaled by `factor`, clear."""
        average_and_clip(self.parameters)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["peak"] * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """States of all parts."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
