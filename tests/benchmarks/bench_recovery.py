"""Cost of a distillation step as a ratio: the truncated student over a plain LoRA step.

Run by ``make bench``, or ``python tests/benchmarks/bench_recovery.py [--model FOLDER]``.

Both sides train the same adapter on the same batch and targets; they differ in the cut alone. They
run alternately, and the median of the paired ratios is printed with its range.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from bench_sweeps import alternately, line  # noqa: E402

from visdepth_utils import load_task, load_vlm  # noqa: E402
from visdepth_utils.claims.c6 import cut_depth  # noqa: E402
from visdepth_utils.claims.registry import claim_entry  # noqa: E402
from visdepth_utils.measure.distillation import Distillation, answer_loss, lora_config  # noqa: E402
from visdepth_utils.models.reading import quiet  # noqa: E402
from visdepth_utils.models.vlm import VLM  # noqa: E402


def steps(vlm: VLM, task_name: str, depth: int, precision: str) -> list[Callable[[], None]]:
    """One step of the student, and one of the model that is not cut."""
    task = load_task(task_name, n=16)
    ids = {
        s.id: vlm.tokenizer(s.reference, add_special_tokens=False)["input_ids"]
        for s in task.samples
    }
    weights = [p for p in vlm.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def step(cut: int) -> Callable[[], None]:
        def run() -> None:
            with half:
                loss = answer_loss(vlm, task.samples, ids, cut)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()

        return run

    return [step(depth), step(vlm.n_layers)]


def main() -> None:
    """Measure one model on captions and charts, in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="data/minivlm/base")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    vlm = load_vlm(args.model)
    depth = cut_depth(claim_entry("C6"), vlm.n_layers)
    with quiet():
        student = get_peft_model(vlm.model, lora_config(vlm, Distillation(depth)))
    print(f"distillation: {vlm.name}, cut at {depth}, {torch.get_num_threads()} threads")
    for task in ("caption", "chart"):
        for precision in ("bfloat16", "float32"):
            times = alternately(steps(vlm, task, depth, precision), args.repeats)
            line(f"{task}, {precision}: distillation step / plain LoRA step", times, "<= 1.1")
    student.unload()


if __name__ == "__main__":
    main()
