"""Time and memory at the true sizes of real models, with random weights, on a GPU.

Run by ``make bench-gpu``, or ``python tests/benchmarks/bench_physical.py [MODEL ...]``; ``--tiny``
runs the same code on small models anywhere (its numbers mean nothing). The text decoders have the
sizes of Qwen2.5-VL-3B, Qwen2.5-VL-7B and LLaVA-1.5-7B; they are made on the meta device and get
memory on the GPU at once, in bfloat16. The vision towers are tiny: they are no part of what is
compared. Weights change neither time nor memory.

* geometry: ``layer_geometry`` over the plain forward pass of the same batch, time and peak memory
  beyond the weights.
* sweep: all depths at once, over one plain prefill, and against one run per depth.
* physical: prefill time with rows really dropped over that of the whole model, against the cost
  model's share of FLOPs.

Both sides of a ratio run alternately; medians of paired ratios are printed as a markdown table with
device and date.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, DynamicCache

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from bench_geometry import LiveBytes  # noqa: E402

from tests import tiny  # noqa: E402
from visdepth_utils import layer_geometry, truncation_sweep  # noqa: E402
from visdepth_utils.claims.savings import measured_ratios  # noqa: E402
from visdepth_utils.measure import physical  # noqa: E402
from visdepth_utils.measure.costs import predicted_costs, shape_of  # noqa: E402
from visdepth_utils.measure.random_decoders import SIZES, materialised  # noqa: E402
from visdepth_utils.measure.timing import time_by_depth  # noqa: E402
from visdepth_utils.measure.truncation import kl_divergence  # noqa: E402
from visdepth_utils.models.families import FAMILIES  # noqa: E402
from visdepth_utils.models.reading import read_config, read_processor  # noqa: E402
from visdepth_utils.models.vlm import VLM  # noqa: E402

MODELS = {"Qwen2.5-VL-3B": 1024, "Qwen2.5-VL-7B": 1024, "LLaVA-1.5-7B": 576}
"""Name -> image tokens of its picture."""
TINY = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 128}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}


def build(name: str, folder: Path, device: torch.device, small: bool) -> tuple[VLM, tiny.Sample]:
    """A whole model with a decoder of the true size, its processor, and a sample for it."""
    image_tokens = 16 if small else MODELS[name]
    side = int(image_tokens**0.5)
    if name.startswith("Qwen"):
        tiny.qwen(folder, most_tokens=image_tokens)
        family, pixels = "qwen2_5_vl", 28 * side
    else:
        tiny.llava(folder, size=8 * side)
        family, pixels = "llava", 8 * side
    config = read_config(str(folder), str(folder), revision=None, trust_remote_code=False)
    processor = read_processor(str(folder), str(folder), revision=None, trust_remote_code=False)
    sizes = {k: v for k, v in SIZES[name].items() if k != "model_type"} | (TINY if small else {})
    head = sizes["hidden_size"] // sizes["num_attention_heads"]
    text = {**config.text_config.to_dict(), **sizes, "head_dim": head}
    text.pop("layer_types", None)  # follows from the number of layers
    if family == "qwen2_5_vl":
        del text["head_dim"]
        config.vision_config.out_hidden_size = sizes["hidden_size"]
        section = [head // 8, 3 * head // 16, 3 * head // 16]
        text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": section}
    config.text_config = type(config.text_config)(**text)
    config.tie_word_embeddings = bool(sizes.get("tie_word_embeddings"))
    dtype = torch.float32 if small else torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    vlm = VLM(
        model=materialised(model, device),
        processor=processor,
        family=FAMILIES[family],
        image_token_id=config.image_token_id,
        device=device,
        dtype=dtype,
        name=f"{name} (random weights)",
        weights_hash="",
    )
    vlm.model.generation_config.eos_token_id = [-1]  # no answer ends early
    sample = tiny.sample(0, words=70)
    sample = replace(sample, images=(tiny.picture(0, pixels),))
    found = int(vlm.encode([sample]).is_image.sum())
    assert found == image_tokens, (found, image_tokens)
    return vlm, sample


def measured(vlm: VLM, run: Callable[[], object]) -> tuple[float, int]:
    """Seconds of one call, and its peak bytes beyond what was there before."""
    if vlm.device.type != "cuda":
        with LiveBytes(vlm.model) as live:
            start = time.perf_counter()
            run()
            return time.perf_counter() - start, live.peak
    torch.cuda.synchronize(vlm.device)
    torch.cuda.reset_peak_memory_stats(vlm.device)
    before, start = torch.cuda.memory_allocated(vlm.device), time.perf_counter()
    run()
    torch.cuda.synchronize(vlm.device)
    taken = time.perf_counter() - start
    return taken, torch.cuda.max_memory_allocated(vlm.device) - before


def pairs(
    vlm: VLM, sides: list[Callable[[], object]], repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios first / second side (repeats,) of time and of peak memory, run alternately."""
    for side in sides:
        side()
    found = np.array([[measured(vlm, side) for side in sides] for _ in range(repeats)])
    ratios = found[:, 0] / found[:, 1]
    return ratios[:, 0], ratios[:, 1]


def row(name: str, what: str, ratios: np.ndarray, goal: str) -> None:
    """One line of the table."""
    middle, low, high = np.median(ratios), ratios.min(), ratios.max()
    print(f"| {name} | {what} | {middle:.2f} | {low:.2f} to {high:.2f} | {goal} |", flush=True)


@torch.no_grad()
def plain(vlm: VLM, samples: list[tiny.Sample], with_reference: bool) -> torch.Tensor:
    """Encode and one forward pass: what everybody pays."""
    enc = vlm.encode(samples, with_reference=with_reference)
    cache = {"use_cache": False} if with_reference else {"past_key_values": DynamicCache()}
    return vlm.model(**enc.inputs, **cache, logits_to_keep=1).logits


def bench_geometry(name: str, vlm: VLM, sample: tiny.Sample, batch: int, repeats: int) -> None:
    """Capture and geometry over the plain forward pass."""
    samples = [replace(sample, id=f"s{i}") for i in range(batch)]
    tokens = int(vlm.encode([sample]).is_image.sum())
    sides = [
        lambda: layer_geometry(vlm, samples, batch_size=batch),
        lambda: plain(vlm, samples, with_reference=True),
    ]
    seconds, memory = pairs(vlm, sides, repeats)
    what = f"geometry / plain forward, {tokens} image tokens, batch {batch}"
    row(name, f"{what}, time", seconds, "<= 1.25")
    row(name, f"{what}, peak memory", memory, "")


def bench_sweep(name: str, vlm: VLM, sample: tiny.Sample, repeats: int) -> None:
    """All depths in one sweep against one prefill and against one run per depth."""
    found: dict[str, np.ndarray] = {}

    def sweep() -> None:
        found["sweep"] = truncation_sweep(vlm, [sample], max_new_tokens=0)["kl"].to_numpy()

    def loop() -> None:
        enc = vlm.encode([sample])
        runs = [physical.greedy(vlm, enc, d, 1)[1] for d in range(vlm.n_layers + 1)]
        found["loop"] = np.array([float(kl_divergence(runs[-1], each)) for each in runs])

    seconds, memory = pairs(
        vlm, [sweep, lambda: plain(vlm, [sample], with_reference=False)], repeats
    )
    row(name, "all depths: sweep / one prefill, time", seconds, "<= 2.3")
    row(name, "all depths: sweep / one prefill, peak memory", memory, "")
    row(name, "all depths: loop / sweep, time", pairs(vlm, [loop, sweep], repeats)[0], ">= 8")
    gap = np.abs(found["loop"] - found["sweep"])
    row(name, "all depths: loop - sweep, KL in nats", gap, "0, up to rounding")


def bench_physical(name: str, vlm: VLM, counts: list[int], repeats: int) -> None:
    """Prefill time with dropped rows over the whole model's, against the share of FLOPs."""
    shape, last = shape_of(vlm.model.config), vlm.n_layers
    depths = sorted({0, last // 4, last // 2, 3 * last // 4})
    for count in counts:
        table = measured_ratios(time_by_depth(vlm, count, 75, depths, repeats=repeats))
        table = table[table["depth"] < last].set_index("depth")
        told = predicted_costs(shape, count, 75, depths).set_index("depth")
        off = (table["prefill_ratio"] / told["prefill_ratio"]).loc[depths[1:]].to_numpy()
        goal = "0.85 to 1.15" if count >= 1000 else ""
        row(name, f"prefill, {count} image tokens: measured / predicted ratio", off, goal)
        half = table.loc[last // 2]
        row(name, f"prefill at half depth, {count} image tokens", _three(half, "prefill"), "")
        row(name, f"decoding at half depth, {count} image tokens", _three(half, "decode"), "")


def _three(half: object, kind: str) -> np.ndarray:
    return np.array([half[f"{kind}_{what}"] for what in ("least", "ratio", "most")])


def main(argv: list[str] | None = None) -> int:
    """Measure the models of the given names, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--tiny", action="store_true", help="small models, on the CPU")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args(argv)
    if unknown := [name for name in args.models if name not in MODELS]:
        parser.error(f"no sizes for {unknown[0]!r}: there are {', '.join(MODELS)}")
    if not args.tiny and not torch.cuda.is_available():
        print(
            "no CUDA device here: models of true size need a GPU with 24 GB; "
            "--tiny runs the same code on the CPU",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cpu" if args.tiny else "cuda:0")
    where = "CPU, tiny models" if args.tiny else torch.cuda.get_device_name(device)
    print(f"{where}; torch {torch.__version__}; {datetime.now(UTC).date()}\n")
    print("| model | what | median | range | goal |\n|---|---|---|---|---|")
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            vlm, sample = build(name, Path(folder), device, args.tiny)
            bench_geometry(name, vlm, sample, args.batch, args.repeats)
            if name.startswith("Qwen") and not args.tiny:  # pictures of any size
                for side, images in ((24, 1), (16, 13)):  # 576 and 3,328 tokens
                    pictures = tuple(tiny.picture(i, 28 * side) for i in range(images))
                    other = replace(sample, images=pictures)
                    bench_geometry(name, vlm, other, args.batch, args.repeats)
            bench_sweep(name, vlm, sample, args.repeats)
            counts = [16, 1000] if args.tiny else [576, 1024, 3000]
            bench_physical(name, vlm, counts, args.repeats)
            del vlm
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
