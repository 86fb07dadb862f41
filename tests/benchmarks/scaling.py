"""How a study scales over a cluster: small runs, a simulation, a formula; writes docs/scaling.md.

Measured here: what one shard costs beside its own work, and throughput with one and two workers.
Simulated from these: more workers. Computed from the assumptions in ASSUMED: a 72B study.
Run it on an idle machine: ``python tests/benchmarks/scaling.py``.
"""

import heapq
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from visdepth_utils import load_task, load_vlm, truncation_sweep
from visdepth_utils.runs import provenance, ray_executor
from visdepth_utils.runs.run import Run, open_run

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scaling.md"
MODEL, N, SIZE = "data/minivlm/small", 384, 8
EMPTY_SHARDS = 200
WORKERS = (1, 2, 4, 8, 16, 32, 64)
SHARDS = 1000
SPREAD = 0.25  # standard deviation of a shard's time over its mean, log-normal

ASSUMED = {
    "parameters": 72e9,
    "layers": 80,
    "depths": 81,  # 0..80
    "samples per task": 1000,
    "tokens of image and system prompt": 1300,
    "tokens behind the image": 60,
    "new tokens by task": {"choice": 4, "short answer": 8, "caption": 60, "reasoning": 250},
    "GPUs per worker": 4,
    "bytes per parameter": 2,
    "peak of one GPU, FLOP/s": 989e12,
    "share of it in long passes": 0.4,
    "memory of one GPU, B/s": 3.35e12,
    "share of it in decoding": 0.6,
    "samples decoded together": 4,
    "workers": (1, 4, 16),
}


def timed(name: str, actors: int | None, samples: list, fn: object, size: int) -> float:
    """Seconds of one step in a fresh folder, workers already started."""
    os.environ["VISDEPTH_ENGINE"] = "ray" if actors else "local"
    os.environ["VISDEPTH_RAY"] = json.dumps({"num_actors": actors})
    with tempfile.TemporaryDirectory() as folder:
        run: Run = open_run(model=MODEL, out_dir=folder)
        run.by_block("warm", samples[: size * (actors or 1)], fn, size=size)
        start = time.perf_counter()
        run.by_block(name, samples, fn, size=size)
        return time.perf_counter() - start


def measure() -> dict[str, float]:
    """Throughput of real shards, and what empty ones cost."""
    torch.set_num_threads(1)
    vlm, task = load_vlm(MODEL, device="cpu"), load_task("vqa", n=N)
    empty = [SimpleNamespace(id=f"s{i}") for i in range(EMPTY_SHARDS)]

    def real(block: list, progress: object) -> pd.DataFrame:
        return truncation_sweep(vlm, block, max_new_tokens=6, progress=progress)

    def nothing(block: list, _progress: object) -> pd.DataFrame:
        return pd.DataFrame({"sample": [sample.id for sample in block]})

    found = {}
    with ray_executor.serving():
        for actors in (None, 1, 2):
            label = f"{actors} workers" if actors else "local"
            found[label] = N / timed("real", actors, task.samples, real, SIZE)
            found[f"overhead, {label}"] = timed("empty", actors, empty, nothing, 1) / len(empty)
    return found


def simulate(workers: int, shard_s: float, driver_s: float, seed: int = 0) -> float:
    """Shards per second when each asks the driver, one at a time, for ``driver_s``."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(np.log1p(SPREAD**2))
    times = shard_s * rng.lognormal(-(sigma**2) / 2, sigma, SHARDS)
    free = [0.0] * workers
    driver = 0.0
    for duration in times:
        ready = heapq.heappop(free)
        driver = max(driver, ready) + driver_s
        heapq.heappush(free, driver + duration)
    return SHARDS / max(free)


def study_hours(workers: int) -> dict[str, float]:
    """Hours of each task of the 72B study by ASSUMED."""
    a = SimpleNamespace(**{name.split(",")[0].replace(" ", "_"): v for name, v in ASSUMED.items()})
    flops = a.peak_of_one_GPU * a.share_of_it_in_long_passes * a.GPUs_per_worker
    bandwidth = a.memory_of_one_GPU * a.share_of_it_in_decoding * a.GPUs_per_worker
    prefix = 2 * a.parameters * (a.tokens_of_image_and_system_prompt + a.tokens_behind_the_image)
    # A row of depth d reruns only the layers above d: on average half of them.
    tails = 2 * a.parameters * a.depths * a.tokens_behind_the_image / 2
    hours = {}
    for task, tokens in ASSUMED["new tokens by task"].items():
        read = a.parameters * a.bytes_per_parameter / bandwidth / a.samples_decoded_together
        work = 2 * a.parameters * a.depths / flops
        seconds = (prefix + tails) / flops + tokens * max(read, work)
        hours[task] = seconds * a.samples_per_task / workers / 3600
    return hours


def table(head: list[str], rows: list[list[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def page(found: dict[str, float]) -> str:
    """The text of docs/scaling.md."""
    shard_s = SIZE / found["1 workers"]
    driver_s = found["overhead, 1 workers"]
    machine = provenance.machine()
    small = [
        [label, f"{found[label]:.1f}", f"{1000 * found[f'overhead, {label}']:.0f} ms"]
        for label in ("local", "1 workers", "2 workers")
    ]
    simulated = []
    for workers in WORKERS:
        row: list[object] = [workers]
        for factor in (1, 30):
            base = simulate(1, factor * shard_s, driver_s)
            speed = simulate(workers, factor * shard_s, driver_s) / base
            row += [f"{speed:.1f}", f"{speed / workers:.0%}"]
        simulated.append(row)
    hours = {workers: study_hours(workers) for workers in ASSUMED["workers"]}
    study = [
        [task, *(f"{hours[workers][task]:.2f}" for workers in hours)]
        for task in ASSUMED["new tokens by task"]
    ]
    study.append(["all", *(f"{sum(hours[workers].values()):.2f}" for workers in hours)])
    heads = [f"{workers} ({workers * ASSUMED['GPUs per worker']} GPUs)" for workers in hours]
    assumed = [[name, json.dumps(value)] for name, value in ASSUMED.items() if name != "workers"]
    return f"""# Scaling

Made by `python tests/benchmarks/scaling.py`; run it again on your machine.

## Measured

{machine["cpu"]}, {machine["cores"]} cores, one thread per process. `{MODEL}`, {N} samples of `vqa`,
truncation at every depth in shards of {SIZE}; and {EMPTY_SHARDS} shards that measure nothing, which
shows what a shard costs beside its work: handing out, sending back, writing the cache with fsync.

{table(["engine", "samples/s", "per empty shard"], small)}

Workers, the driver and Ray's own processes share these cores, so that two workers here are less
than twice one.

## Simulated

{SHARDS} shards; their times are log-normal around the measured {shard_s:.2f} s, with a standard
deviation of {SPREAD:.0%}. The driver serves one shard at a time and takes the measured
{1000 * driver_s:.0f} ms for it. Workers have equal hardware of their own; starting them and loading
the model is left out. The second pair of columns has shards that take 30 times as long, as larger
models have.

{table(["workers", "speed-up", "efficiency", "30 x: speed-up", "efficiency"], simulated)}

## Computed: 72B, four tasks, 80 layers

Not measured. Per sample, with P parameters, one shared prefill of all tokens, then the tokens
behind the image once per depth through half of the layers on average, then decoding, where a step
costs what is larger: reading all weights once for the samples decoded together, or the work of all
rows:

    2 P (prefix + tail) / F  +  2 P depths tail / 2 / F
      +  new max(P bytes / B / together, 2 P depths / F)

F and B are the FLOP/s and bytes/s of one worker. Hours by number of workers:

{table(["task", *heads], study)}

{table(["assumed", "value"], assumed)}

Left out: attention's square term, the vision tower, loading, failures, and the controls. A rerun
of the whole model for each depth would replace the first two terms by
`2 P depths (prefix + tail) / F`.
"""


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(measure()), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
