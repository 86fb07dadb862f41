"""Cost of the sweeps as ratios in one run, at LLaVA-1.5's counts: 576 image tokens, 35 + 40 others.

Run by ``make bench``, or ``python tests/benchmarks/bench_sweeps.py [--layers 32] [--width 512]``.
The weights are random: they do not change what is computed, only what comes out.

* truncation, logits: every depth 0..L in one sweep, over one plain prefill, and against the loop
  that runs the model once per depth with the image rows really dropped, or really frozen (the
  fastest loop there is).
* truncation, 20 tokens: the same with greedy answers.
* substitution: all pairs of every ``stride``-th layer, against one full run per pair.
* chains: greedy and teacher-forced at every depth, against one run of each kind per depth.
* memory: peak of live tensors during a sweep against ``batching.row_bytes``.
* nnsight: the truncation loop written for nnsight, where it is installed (``pip install nnsight``;
  it is no dependency).

Each pair of sides runs alternately and their outcomes are compared; a difference stops the run.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import DynamicCache

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))

from bench_geometry import LiveBytes, seconds  # noqa: E402

from tests import tiny  # noqa: E402
from visdepth_utils import (  # noqa: E402
    load_vlm,
    reasoning_sweep,
    substitution_grid,
    token_kl,
    truncation_sweep,
)
from visdepth_utils.measure import physical  # noqa: E402
from visdepth_utils.measure.batching import row_bytes  # noqa: E402
from visdepth_utils.measure.interventions import substituted, truncated  # noqa: E402
from visdepth_utils.measure.patching.branches import kept_for_truncation, replaceable, truncation  # noqa: E402
from visdepth_utils.measure.patching.prefill import Index, prefill  # noqa: E402
from visdepth_utils.measure.truncation import kl_divergence  # noqa: E402
from visdepth_utils.models.encoding import append_tokens  # noqa: E402
from visdepth_utils.models.vlm import VLM  # noqa: E402

BEFORE, AFTER = 35, 40


def llava_counts(folder: Path, layers: int, width: int) -> tuple[VLM, tiny.Sample]:
    """A random LLaVA with 576 image tokens, and a sample with 35 tokens before and 40 after it."""
    vlm = load_vlm(tiny.llava(folder, size=192, layers=layers, width=width))
    words = " ".join(tiny.WORDS[i % len(tiny.WORDS)] for i in range(BEFORE - 1))
    vlm.processor.chat_template = (
        f"{{{{ bos_token }}}}{words} "
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    )
    vlm.model.generation_config.eos_token_id = [-1]  # no answer ends early
    sample = tiny.sample(0, words=AFTER)
    enc = vlm.encode([sample])
    before = int(enc.is_image[0].long().argmax())
    counts = (before, int(enc.is_image.sum()), enc.is_image.shape[1] - before - 576)
    assert counts == (BEFORE, 576, AFTER), counts
    return vlm, sample


def plain_prefill(vlm: VLM, sample: tiny.Sample) -> torch.Tensor:
    """What everybody pays once."""
    enc = vlm.encode([sample])
    with torch.no_grad():
        out = vlm.model(**enc.inputs, past_key_values=DynamicCache(), logits_to_keep=1)
    return out.logits[0, -1]


def truncation_loop(
    vlm: VLM, sample: tiny.Sample, budget: int, mode: str = "remove"
) -> list[tuple[list[int], float]]:
    """One run per depth, image rows dropped or frozen: answers and KL to the full model."""
    enc, most = vlm.encode([sample]), max(budget, 1)
    runs = [physical.greedy(vlm, enc, d, most, mode=mode) for d in range(vlm.n_layers + 1)]
    full = runs[-1][1]
    return [(ids, float(kl_divergence(full, logits))) for ids, logits, _ in runs]


def grid_loop(vlm: VLM, sample: tiny.Sample, modality: str, layers: list[int]) -> list[float]:
    """One full run per pair, by hooks: KL to the plain model."""
    enc = vlm.encode([sample])
    where = replaceable(enc, modality)
    pre = prefill(vlm, enc, where)
    index = Index.of(where)
    out = []
    for layer in layers:
        for source_layer in layers:
            states = torch.zeros(*where.shape, vlm.hidden_size)
            states[where] = pre.state(source_layer, index)[index.valid]
            with substituted(vlm, enc, layer, where, states), torch.no_grad():
                logits = vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
            out.append(float(kl_divergence(pre.logits[0], logits)))
    return out


def alternately(sides: list[Callable[[], object]], repeats: int) -> np.ndarray:
    """Seconds (repeats, sides), the last side run once before: its first call is slower."""
    sides[-1]()
    return np.array([[seconds(side) for side in sides] for _ in range(repeats)])


def line(label: str, times: np.ndarray, goal: str) -> None:
    """One ratio with its range."""
    ratios = times[:, 0] / times[:, 1]
    print(
        f"  {label:<52} {np.median(ratios):7.2f}  "
        f"(range {ratios.min():.2f}-{ratios.max():.2f}; goal {goal})",
        flush=True,
    )


def bench_truncation(
    vlm: VLM, sample: tiny.Sample, tokens: int, repeats: int, mode: str = "remove"
) -> None:
    """Ratios of the truncation sweep in one mode."""
    found: dict[str, object] = {}

    def sweep(budget: int) -> Callable[[], None]:
        def run() -> None:
            found["sweep"] = truncation_sweep(vlm, [sample], mode=mode, max_new_tokens=budget)

        return run

    def loop(budget: int) -> Callable[[], None]:
        def run() -> None:
            found["loop"] = truncation_loop(vlm, sample, budget, mode)

        return run

    plain_prefill(vlm, sample)
    sweep(0)()
    times = alternately([sweep(0), lambda: plain_prefill(vlm, sample)], max(repeats, 3))
    line(f"{mode}, all depths, logits: sweep / one prefill", times, "<= 2.3")
    times = alternately([loop(0), sweep(0)], repeats)
    check_equal(found["loop"], found["sweep"], texts=None)
    line(f"{mode}, all depths, logits: loop / sweep", times, ">= 8")
    times = alternately([loop(tokens), sweep(tokens)], repeats)
    check_equal(found["loop"], found["sweep"], texts=vlm)
    line(f"{mode}, all depths, {tokens} tokens: loop / sweep", times, ">= 6")


def check_equal(loop: list, table: object, texts: VLM | None) -> None:
    """Stop where the two sides disagree."""
    gap = np.abs(np.array([kl for _, kl in loop]) - table["kl"].to_numpy()).max()
    assert gap < 1e-4, f"divergences differ by {gap}"
    if texts is not None:
        said = [texts.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids, _ in loop]
        assert said == table["output"].tolist(), "answers differ"


def bench_reasoning(vlm: VLM, sample: tiny.Sample, tokens: int, repeats: int) -> None:
    """Chains at every depth, written and read, against one run of each kind per depth."""
    found: dict[str, object] = {}

    def sweep() -> None:
        found["sweep"] = reasoning_sweep(vlm, [sample], controls=(), max_new_tokens=tokens)

    def loop() -> None:
        enc = vlm.encode([sample])
        depths = range(vlm.n_layers + 1)
        said = [physical.greedy(vlm, enc, d, tokens)[0] for d in depths]
        along = append_tokens(vlm, enc, [said[-1]])
        changed, full = [], None
        for depth in reversed(depths):
            with truncated(vlm, along, depth), torch.no_grad():
                out = vlm.model(**along.inputs, use_cache=False, logits_to_keep=tokens + 1)
            top = out.logits[0, :-1].argmax(-1)
            full = top if full is None else full
            changed.append((top != full).tolist())
        found["loop"] = (said, changed[::-1])

    times = alternately([loop, sweep], repeats)
    said, changed = found["loop"]
    read = token_kl(vlm, [sample], token_ids=[said[-1]]).pivot(
        index="depth", columns="token", values="same_top1"
    )
    assert (~read.to_numpy(bool)).tolist() == changed, "tokens that change differ"
    texts = [vlm.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in said]
    assert texts == found["sweep"]["output"].tolist(), "chains differ"
    line(f"chains of {tokens} tokens, written and read: loop / sweep", times, ">= 5")


def bench_grid(vlm: VLM, sample: tiny.Sample, stride: int, repeats: int) -> None:
    """Ratios of the substitution grid."""
    for modality, goal in (("text", ">= 20"), ("image", ">= 2")):
        layers = list(range(vlm.n_layers))[::-1][::stride][::-1]
        found = {}

        def sweep(modality: str = modality, found: dict = found) -> None:
            found["sweep"] = substitution_grid(
                vlm, [sample], modality=modality, stride=stride, controls=(), max_new_tokens=0
            )

        def loop(modality: str = modality, found: dict = found, layers: list = layers) -> None:
            found["loop"] = grid_loop(vlm, sample, modality, layers)

        times = alternately([loop, sweep], repeats)
        table = found["sweep"].sort_values(["layer", "source_layer"])
        gap = np.abs(np.array(found["loop"]) - table["kl"].to_numpy()).max()
        assert gap < 1e-4, f"{modality}: divergences differ by {gap}"
        line(f"{modality} states, {len(layers)}x{len(layers)} pairs: loop / sweep", times, goal)


def bench_memory(vlm: VLM, sample: tiny.Sample, tokens: int) -> None:
    """Measured peak of a sweep over the formula's."""
    enc = vlm.encode([sample])
    rows = truncation(
        prefill(vlm, enc, kept_for_truncation(vlm, enc, "remove")), range(vlm.n_layers + 1)
    )
    for budget in (0, tokens):
        with LiveBytes(vlm.model) as live:
            truncation_sweep(vlm, [sample], max_new_tokens=budget, max_rows=vlm.n_layers + 1)
        told = row_bytes(
            vlm,
            tokens=enc.is_image.shape[1],
            moved=len(rows.moved),
            context=len(rows.context),
            rows=vlm.n_layers + 1,
            new_tokens=budget,
        )
        print(
            f"  {f'peak memory, {budget} tokens: measured / formula':<52} {live.peak / told:7.2f}  "
            f"(measured {live.peak / 2**20:.0f} MiB; goal 0.8 to 1.2)",
            flush=True,
        )


def bench_nnsight(vlm: VLM, sample: tiny.Sample, repeats: int) -> None:
    """The truncation loop as one would write it for nnsight, against the sweep."""
    try:
        from nnsight import NNsight
    except ImportError:
        print("  nnsight is not installed: pip install nnsight (for the benchmark only)")
        return
    enc = vlm.encode([sample])
    wrapped = NNsight(vlm.model)
    n = enc.is_image.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    hidden = causal & ~(enc.is_image[0][None, :] & ~enc.is_image[0][:, None])

    def loop() -> None:
        logits = []
        for depth in range(vlm.n_layers + 1):
            with torch.no_grad(), wrapped.trace(**enc.inputs, use_cache=False, logits_to_keep=1):
                for layer in wrapped.model.language_model.layers[depth:]:
                    args, kwargs = layer.inputs
                    layer.inputs = (args, {**kwargs, "attention_mask": hidden[None, None]})
                out = wrapped.output.logits[0, -1].save()
            logits.append(out)
        found["loop"] = [([], float(kl_divergence(logits[-1], each))) for each in logits]

    found: dict[str, object] = {}

    def sweep() -> None:
        found["sweep"] = truncation_sweep(vlm, [sample], max_new_tokens=0)

    times = alternately([loop, sweep], repeats)
    check_equal(found["loop"], found["sweep"], texts=None)
    line("all depths, logits: nnsight loop / sweep", times, "none; for comparison")


def main() -> None:
    """Measure one random model of the given size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vlm, sample = llava_counts(Path(folder) / "wide", args.layers, args.width)
        print(
            f"sweeps: {args.layers} layers, width {args.width}, {torch.get_num_threads()} threads"
        )
        for mode in ("remove", "freeze"):
            bench_truncation(vlm, sample, args.tokens, args.repeats, mode)
        bench_reasoning(vlm, sample, args.tokens, args.repeats)
        bench_grid(vlm, sample, args.stride, args.repeats)
        bench_memory(vlm, sample, args.tokens)
        bench_nnsight(vlm, sample, args.repeats)


if __name__ == "__main__":
    main()
