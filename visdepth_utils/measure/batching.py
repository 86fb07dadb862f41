"""Work through samples in blocks of as many rows as memory holds; halve and go on when it does not.

A row is one variant of one sample (a depth, a source layer). Results do not depend on how rows are
grouped, beyond rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psutil
import torch

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.samples import Sample
from visdepth_utils.models.vlm import VLM

T = TypeVar("T")

SHARE_OF_FREE = 0.4
"""Of the free memory, what a block may take: the rest is for the model's own temporaries."""

MOST_ROWS = 512

CPU_TOKENS = 6000
"""On a CPU, whole sequences that run again are fastest when a layer's temporaries stay small:
64 rows at once took 1.4 times as long as 4 (the model of bench_sweeps), 512 rows 1.6 times as long
as 128 (minivlm/base).
"""


def row_bytes(
    vlm: VLM,
    *,
    tokens: int,
    moved: int,
    context: int,
    rows: int,
    new_tokens: int = 0,
    samples: int = 1,
) -> int:
    """Peak bytes of one truncation block besides the model: every tensor that grows with rows.

    With L layers, S ``tokens`` of which T are ``moved`` and read C others (``context``), R rows of
    B samples (one per depth, so that n_l = min(l + 1, R) have started at layer l), N new tokens, k
    = 2 x KV heads x head size numbers of a token's keys and values, q the same with all heads, D
    the width and F that of the MLP, in elements::

        plain keys       B k L S, twice while decoding (a copy with room for the rows' own)
        kept states      B (L + 1) T D
        keys of rows     B k T sum_l n_l, kept for decoding only
        keys of answers  B k L R (N - 1)
        one layer        B R max(T (4 D + 3 F), (C + T) (k + q) + 4 T D): MLP or attention
    """
    config = vlm.model.config.get_text_config()
    all_heads = config.num_attention_heads
    n_layers, width = vlm.n_layers, vlm.hidden_size
    # Layers may differ (Gemma 4): the largest counts for all.
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    sizes = [getattr(each, "head_dim", None) or width // all_heads for each in layers]
    heads = [getattr(each, "num_key_value_heads", None) or all_heads for each in layers]
    size, kv = max(sizes), 2 * max(a * b for a, b in zip(heads, sizes, strict=True))
    started = sum(min(layer + 1, rows) for layer in range(n_layers))
    decodes = new_tokens > 1
    elements = kv * n_layers * tokens * (2 if decodes else 1)
    elements += (n_layers + 1) * moved * width
    elements += kv * moved * started if decodes else 0
    elements += kv * n_layers * rows * max(new_tokens - 1, 0)
    mlp = moved * (4 * width + 3 * config.intermediate_size)
    attention = (context + moved) * (kv + 2 * all_heads * size) + 4 * moved * width
    elements += rows * max(mlp, attention)
    return samples * elements * torch.finfo(vlm.dtype).bits // 8


def free_bytes(device: torch.device) -> int:
    """Memory that we can take now on the device; on any but CUDA the machine's.

    What torch has reserved and does not use counts as free: it serves our next tensors.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return psutil.virtual_memory().available


def choose_max_rows(
    vlm: VLM, sample: Sample, rows: int, new_tokens: int, images_run: bool = False
) -> int:
    """How many rows fit, by the measured size of one sample and the free memory: 1 to MOST_ROWS.

    ``rows`` is the number of one sample; ``images_run``: whether image tokens run again in every
    row, or only those after them.
    """
    enc = vlm.encode([sample])
    tokens = enc.is_image.shape[1]
    after = enc.is_image.long().cumsum(1) > 0
    moved = int((after if images_run else after & ~enc.is_image).sum())
    need = row_bytes(
        vlm,
        tokens=tokens,
        moved=moved,
        context=int((~after).sum()),
        rows=rows,
        new_tokens=new_tokens,
    )
    fits = int(SHARE_OF_FREE * free_bytes(vlm.device) * rows / need)
    if images_run and vlm.device.type == "cpu":
        fits = min(fits, CPU_TOKENS // moved)
    return max(1, min(fits, MOST_ROWS))


def in_blocks(
    samples: Sequence[Sample],
    rows: int,
    max_rows: int,
    measure: Callable[[list[Sample], int], list[T]],
    progress: Progress | None = None,
    label: str = "",
) -> list[T]:
    """Measure samples block by block and join what comes back.

    ``measure`` is called with (samples of the block, rows at once). ``rows`` is the number of one
    sample; a sample with more than ``max_rows`` is measured in parts, by ``measure``. Progress is
    called with (done, total, label).

    Raises:
        ValueError: max_rows below 1.
        RuntimeError: Out of memory with a single row.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows={max_rows}: give at least 1, or None to have it chosen")
    out: list[T] = []
    done = 0
    while done < len(samples):
        block = list(samples[done : done + max(1, max_rows // rows)])
        try:
            out += measure(block, max_rows)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if max_rows == 1:
                raise RuntimeError(
                    f"sample {block[0].id!r} does not fit into memory with a single row: "
                    "use a smaller model, dtype='bfloat16', or a device with more memory"
                ) from error
            max_rows //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        done += len(block)
        if progress:
            progress(done, len(samples), label)
    return out


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def chunks(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Items in parts of at most ``size``."""
    size = max(1, size)
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
