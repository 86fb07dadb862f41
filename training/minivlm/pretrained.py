"""Tune the pretrained decoder: `python -m training.minivlm.pretrained`.

Staged as LLaVA: the projector alone on the untouched decoder, then projector and low-rank changes
of every linear layer (LoRA). Every step that changes the decoder also has questions without a
picture, and holds it, on plain instructions, to what the untouched decoder says. A run resumes from
`build/minivlm/smol`, where the result lies too, or on another machine from a copy of the weights
and the recipe there (`--resume`). Under `torchrun --nproc_per_node 2` one worker reads the shapes
and the other the charts and the instructions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from training.minivlm import smol
from training.minivlm.instructions import perplexity, replies
from training.minivlm.optim import average_and_clip, schedule
from training.minivlm.packing import Chat
from training.minivlm.recipe import PREAMBLE
from training.minivlm.stages import Batches, Stage, fast_bfloat16, loss_of, teacher_forced
from training.minivlm.tower import PATCH_WORDS, start_projector
from training.minivlm.train import WORK, prepare_tower
from visdepth_utils.models.assemble import TRAINED, gguf_file, join, read_decoder, with_image_token

RANK = 32
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# A projector moves at a fifth of the adapters' rate; alone it moves at the whole rate.
PROJECTOR_SHARE = 0.2
TEXT_TOKENS, TEXT_WEIGHT = 128, 0.5
_SIZES = {"rows": (2, 2), "length": (448, 320)}
_MIXED = (0.92, 0.04, 0.04)
STAGES = (
    Stage("align", 40, 0.0, 1e-3, (1.0, 0.0, 0.0), "projector", "find", 0.0, **_SIZES),
    Stage("find", 300, 0.0, 1.2e-3, _MIXED, "both", "find", 0.0, **_SIZES),
    Stage("lookup", 300, 0.0, 1.2e-3, _MIXED, "both", "lookups", 0.0, **_SIZES),
    Stage("joint", 400, 0.0, 1.2e-3, _MIXED, "both", "all", 0.0, **_SIZES),
    Stage("finish", 300, 0.0, 1.2e-3, _MIXED, "both", "chains", 0.8, **_SIZES),
)
_TENS = "ten twenty thirty forty fifty sixty seventy eighty ninety"
WORDS = PATCH_WORDS | {"tens": ["", *_TENS.split()], "ones": [str(d) for d in range(10)]}


def chat(tokenizer: Any) -> Chat:
    """The decoder's own conversation format, with the worlds' texts written naturally."""
    encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]  # noqa: E731
    opening = f"<|im_start|>system\n{smol.natural(PREAMBLE)}<|im_end|>\n<|im_start|>user\n"
    head, middle, end = encode([opening, "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"])
    image, pad = tokenizer.convert_tokens_to_ids(["<image>", "<|endoftext|>"])
    return Chat(encode, head, image, middle, end, pad, smol.natural)


@contextlib.contextmanager
def untouched(decoder: nn.Module) -> Iterator[None]:
    """The decoder without its adapters."""
    layers = [m for m in decoder.modules() if isinstance(m, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def reduced(device: torch.device) -> torch.autocast:
    """Multiplications in bfloat16 where that is faster here."""
    return torch.autocast(device.type, torch.bfloat16, fast_bfloat16(device))


def divergence(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """Mean KL divergence, in nats per token, from the untouched decoder on a text."""
    decoder = model.model.language_model
    row = torch.tensor([ids], device=model.device)
    with reduced(model.device):
        with torch.no_grad(), untouched(decoder):
            target = F.log_softmax(model.lm_head(decoder(row).last_hidden_state[0]).float(), -1)
        tuned = F.log_softmax(model.lm_head(decoder(row).last_hidden_state[0]).float(), -1)
    return F.kl_div(tuned, target, log_target=True, reduction="batchmean")


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by parameter name: projector and adapters."""
    return {
        name: p.detach()
        for name, p in model.named_parameters()
        if "lora_" in name or "multi_modal_projector" in name
    }


def save(model: nn.Module, folder: Path, recipe: dict[str, Any]) -> None:
    """Write the trained parts and the tower as bfloat16, and the recipe beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = {k: v for k, v in model.state_dict().items() if "vision_tower" in k}
    tensors = {
        k: v.to(torch.bfloat16).contiguous().cpu() for k, v in (trained(model) | tower).items()
    }
    save_file(tensors, folder / "trained.tmp")
    (folder / "trained.tmp").replace(folder / TRAINED)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")


def prepare(log: Callable[[str], None], seed: int) -> tuple[nn.Module, Any, dict[str, Any], list]:
    """The model with fresh adapters, its tokenizer, scenes with features, and instructions."""
    cached = prepare_tower(log, Path("data/minivlm/base"))
    decoder, tokenizer = read_decoder(gguf_file(smol.DECODER))
    texts = replies(decoder, tokenizer, WORK / "smol" / "instructions.json")
    log(f"{len(texts)} instructions of {sum(map(len, texts))} tokens")
    config = smol.llava_config(decoder, tokenizer)
    model = join(decoder, config)
    tokenizer = with_image_token(tokenizer, config)
    model.model.vision_tower.load_state_dict(cached["tower"])
    words = lambda word: tokenizer(" " + word, add_special_tokens=False)["input_ids"]  # noqa: E731
    ids_of = lambda word: words(word)[-1:] if word.isdigit() else words(word)  # noqa: E731
    start_projector(model, cached, ids_of, seed, WORDS, "empty", as_long_as_words=True)
    model.requires_grad_(False)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=int(smol.DECODER["scale"] * RANK), target_modules=list(LINEAR)
    )
    inject_adapter_in_model(config, model.model.language_model)
    if fast_bfloat16(model.device):  # what is frozen need not be cast anew in every step
        changed = trained(model)
        for name, p in model.named_parameters():
            p.data = p.data if name in changed else p.data.to(torch.bfloat16)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False
    model.set_attn_implementation("eager")  # on CPUs faster to train than the fused kernel
    return model, tokenizer, cached, texts


def main() -> None:
    """Command line: train all stages, saving the weights every hundred steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--resume", type=Path, help="folder with weights and recipe")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = WORK / "smol"
    work.mkdir(parents=True, exist_ok=True)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo", timeout=timedelta(hours=1))
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def log(line: str) -> None:
        if rank:
            return
        text = f"{time.strftime('%H:%M:%S')} smol {line}"
        print(text, flush=True)
        with (work / "log.txt").open("a") as file:
            file.write(text + "\n")

    if rank:  # the first worker makes the features and the texts, the others read them
        dist.barrier()
    model, tokenizer, cached, texts = prepare(log, args.seed)
    if workers > 1 and not rank:
        dist.barrier()
    decoder = model.model.language_model
    layout = chat(tokenizer)
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    projector = list(model.model.multi_modal_projector.parameters())
    log(f"trains {sum(p.numel() for p in adapters + projector) / 1e6:.1f} million parameters")
    optimiser = torch.optim.AdamW(
        [{"params": adapters}, {"params": projector}], betas=(0.9, 0.95), weight_decay=0.01
    )
    at = {"stage": 0, "step": 0, "seconds": 0.0, "tokens": 0}
    state = work / "state.pt"
    if state.exists():
        kept = torch.load(state, weights_only=True)
        model.load_state_dict(kept["trained"], strict=False)
        optimiser.load_state_dict(kept["optimiser"])
        at = kept["at"]
    elif args.resume:
        model.load_state_dict(load_file(args.resume / TRAINED), strict=False)
        at = json.loads((args.resume / "recipe.json").read_text())["at"]
    embed = model.get_input_embeddings().weight

    def read(ids: torch.Tensor) -> torch.Tensor:
        with reduced(model.device):
            return decoder(ids).last_hidden_state

    with untouched(decoder):
        before = 0.0 if rank else perplexity(read, embed, tokenizer)
    log(f"perplexity of the untouched decoder {before:.2f}")
    fresh, history = 0, []  # steps since this process began: rates rise again after a resume
    for number in range(at["stage"], len(STAGES)):
        stage = STAGES[number]
        begin = at["step"] if number == at["stage"] else 0
        for p in adapters:
            p.requires_grad_(stage.trains == "both")
        for p in projector:
            p.requires_grad_(True)
        batches = Batches(stage, args.seed, cached, layout, model.device, shared=False)
        held = [
            batches.draw(k, 10**6 + i, "validation", (1.0, 0.0, 0.0))
            for i in range(4)
            for k in ("shapes", "charts")
        ]
        start, losses = time.time(), []
        model.train()
        for step in range(begin, stage.steps):
            seen = torch.zeros(2)  # tokens and divergence, over all workers
            for kind, share in (("shapes", 0.75), ("charts", 0.25))[rank::workers]:
                batch, features = batches.draw(kind, step)
                loss = workers * share * loss_of(model, decoder, batch, features, 0.0)
                if not torch.isfinite(loss):
                    raise RuntimeError(f"stage {stage.name} step {step}: loss is {loss.item()}")
                loss.backward()
                losses.append(loss.item() / share / workers)
                seen[0] += batch.ids.numel()
            if stage.trains == "both" and rank == workers - 1:
                rng = np.random.default_rng([args.seed, number, step])
                ids = texts[int(rng.integers(len(texts)))][-TEXT_TOKENS:]
                held_to = divergence(model, ids)
                (workers * TEXT_WEIGHT * held_to).backward()
                seen += torch.tensor([len(ids), held_to.item()])
            if workers > 1:
                dist.all_reduce(seen)
            at["tokens"] += int(seen[0])
            average_and_clip([p for p in adapters + projector if p.requires_grad])
            factor = schedule(step, stage.steps, 30, stage.decay) * min(1.0, (fresh + 1) / 30)
            alone = 1.0 if stage.trains == "projector" else PROJECTOR_SHARE
            for group, part in zip(optimiser.param_groups, (1.0, alone), strict=True):
                group["lr"] = stage.adam_rate * factor * part
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            fresh += 1
            done = step + 1
            if done % 10 == 0:
                pace = (time.time() - start) / (done - begin)
                log(
                    f"{stage.name} {done}/{stage.steps} loss {np.mean(losses[-10:]):.3f} "
                    f"kl {seen[1]:.3f} {pace:.1f} s/step"
                )
            if not rank and (done % 50 == 0 or done == stage.steps):
                at |= {"stage": number, "step": done}
                spent = at["seconds"] + time.time() - start
                kept = {
                    "trained": trained(model),
                    "optimiser": optimiser.state_dict(),
                    "at": at | {"seconds": spent},
                }
                torch.save(kept, state.with_suffix(".tmp"))
                state.with_suffix(".tmp").replace(state)
            if not rank and (done % 100 == 0 or done == stage.steps):
                model.eval()
                accuracy = teacher_forced(model, decoder, held)
                after = perplexity(read, embed, tokenizer)
                model.train()
                log(f"{stage.name} {done} perplexity {after:.2f} {json.dumps(accuracy)}")
                history.append({"stage": stage.name, "step": done, "accuracy": accuracy})
                recipe = {
                    "seed": args.seed,
                    "rank": RANK,
                    "stages": [asdict(s) for s in STAGES],
                    "text": {"tokens": TEXT_TOKENS, "weight": TEXT_WEIGHT},
                    "perplexity": {"untouched": before, "tuned": after},
                    "validation": accuracy,
                    "at": at | {"seconds": round(spent)},
                }
                folder = work / "aligned" if stage.name == "align" else work
                save(model, folder, recipe)
                smol.write_layout(folder, model, tokenizer)
        at["seconds"] += time.time() - start
        at["step"] = 0
    log(f"done: {work} holds what data/minivlm/smol ships")


if __name__ == "__main__":
    main()
