"""Cost of layer_geometry as ratios: time over the plain forward, memory over one layer's states.

Run by ``make bench``, or ``python tests/benchmarks/bench_geometry.py [--model FOLDER] [--n 32]``.

Besides the embedded model, random ones with 576, 1,024 and 3,328 image tokens. Time: both sides
encode and run the same samples on one thread of the CPU, alternately, and the median of the paired
ratios of processor time is printed: other work on the machine does not count. Memory: a dispatch
mode counts the bytes of every live torch tensor after every operation, tracemalloc those of numpy;
the extra memory is the peak of both during layer_geometry minus the peak of the plain forward of
the same batch. The two peaks need not coincide, so their sum is an upper bound. One layer's states
are B x S x D x 4 bytes. On a GPU: bench_physical.py.
"""

import argparse
import sys
import tempfile
import time
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import tiny  # noqa: E402
from visdepth_utils import layer_geometry, load_task, load_vlm  # noqa: E402
from visdepth_utils.data.tasks import Sample  # noqa: E402
from visdepth_utils.models.vlm import VLM  # noqa: E402

SIZES = {576: (192, 1), 1024: (256, 1), 3328: (128, 13)}
"""Image tokens -> side of a picture in pixels, pictures of a sample."""


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages made inside the context while they live; a model's own do not."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        weights = (*model.parameters(), *model.buffers())
        self.ours = {weight.untyped_storage()._cdata for weight in weights}
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.sizes and key not in self.ours:
                    self.sizes[key] = storage.nbytes()
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, key)
        return out

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def plain_forward(vlm: VLM, samples: Sequence[Sample], batch_size: int) -> None:
    """What layer_geometry cannot avoid: encode and one forward pass."""
    for start in range(0, len(samples), batch_size):
        enc = vlm.encode(samples[start : start + batch_size], with_reference=True)
        with torch.no_grad():
            vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1)


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cpu_seconds(run: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peaks(vlm: VLM, run: Callable[[], object]) -> tuple[int, int]:
    """Peak bytes of live torch tensors and of numpy arrays made by one call."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    with LiveBytes(vlm.model) as tensors:
        run()
    numpy_peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return tensors.peak, numpy_peak


def bench(label: str, vlm: VLM, samples: Sequence[Sample], batch_size: int, repeats: int) -> None:
    """Print one block of ratios."""
    run = [
        lambda: plain_forward(vlm, samples, batch_size),
        lambda: layer_geometry(vlm, samples, batch_size=batch_size),
    ]
    for warm in run:
        warm()
    times = np.array([[cpu_seconds(r) for r in run] for _ in range(repeats)])
    ratios = times[:, 1] / times[:, 0]
    first = samples[:batch_size]
    states = vlm.encode(first, with_reference=True).is_image.numel() * vlm.hidden_size * 4
    base = peaks(vlm, lambda: plain_forward(vlm, first, batch_size))
    full = peaks(vlm, lambda: layer_geometry(vlm, first, batch_size=batch_size))
    torch_extra, numpy_extra = (max(f - b, 0) / states for f, b in zip(full, base, strict=True))
    print(f"{label}: {vlm.n_layers} layers, width {vlm.hidden_size}, {len(samples)} samples")
    print(
        f"  time    layer_geometry / plain forward   {np.median(ratios):6.2f}  "
        f"(range {ratios.min():.2f}-{ratios.max():.2f} over {repeats} pairs)"
    )
    print(
        f"  time    layer_geometry per sample        {np.median(times[:, 1]) / len(samples):6.3f} s"
    )
    print(f"  memory  extra tensors / layer's states   {torch_extra:6.2f}")
    print(
        f"  memory  extra arrays / layer's states    {numpy_extra:6.2f}  "
        f"(a layer's states of this batch: {states / 2**20:.1f} MiB)"
    )


def main() -> None:
    """Measure the embedded model, and wider random ones where the fixed costs matter less."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="data/minivlm/base")
    parser.add_argument("--task", default="vqa")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4, help="of the random models")
    parser.add_argument("--width", type=int, default=1024, help="of the random models")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = load_task(args.task, n=args.n).samples
    bench(args.model, load_vlm(args.model, device="cpu"), samples, args.batch_size, args.repeats)
    for tokens, (side, images) in SIZES.items():
        batch = max(1, args.batch_size * 576 // tokens)
        with tempfile.TemporaryDirectory() as folder:
            shape = {"layers": args.layers, "width": args.width}
            path = tiny.llava(Path(folder) / "wide", size=side, **shape)
            samples = [tiny.sample(i, images=images, words=70) for i in range(batch)]
            vlm = load_vlm(path, device="cpu")
            vlm.model.config.text_config.max_position_embeddings = 8192
            bench(f"random, {tokens} image tokens", vlm, samples, batch, args.repeats)


if __name__ == "__main__":
    main()
