"""Memory that runs out, numbers that are none, and what may change a number at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from visdepth_utils import (
    layer_geometry,
    load_task,
    load_vlm,
    reasoning_sweep,
    token_kl,
    truncation_sweep,
    verdict,
)
from visdepth_utils.measure.chains import compare
from visdepth_utils.measure.evaluation import evaluate
from visdepth_utils.models.vlm import VLM

ROOT = Path(__file__).resolve().parents[2]
MODEL = "data/minivlm/small"
N = 12
BOUND = 1e-4
"""Nats, and shares of a score: float32 sums in another order differ by far less."""


@pytest.fixture(scope="module")
def small() -> VLM:
    return load_vlm(ROOT / MODEL, device="cpu")


def compared(one: pd.DataFrame, two: pd.DataFrame, what: str) -> None:
    """Tokens and scores are equal, divergences are close; how close is printed."""
    assert one["output"].tolist() == two["output"].tolist()
    assert one["correct"].tolist() == two["correct"].tolist()
    gap = float(np.abs(one["kl"] - two["kl"]).max())
    print(f"{what}: the same {len(one)} answers, KL differs by at most {gap:.1e} nats")
    assert gap < BOUND


def sweep(vlm: VLM, **options: object) -> pd.DataFrame:
    return truncation_sweep(vlm, load_task("vqa", n=N), **options)


# --- out of memory --------------------------------------------------------------------------------


def test_memory_running_out_at_a_batch_size_changes_no_result(
    small: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself fails for batches above 3, as a full device would."""
    task = load_task("vqa", n=N)
    few = task.samples[:6]
    measures = {
        "truncation": lambda: sweep(small),
        "generation": lambda: evaluate(small, task),
        "geometry": lambda: layer_geometry(small, few, n0=16, draws=2),
        "token KL": lambda: token_kl(small, few),
    }
    expected = {name: measure() for name, measure in measures.items()}
    sizes: list[int] = []

    def tight(_module: object, args: tuple, kwargs: dict) -> None:
        if not args and "input_ids" not in kwargs:
            return  # the head alone, which takes states that are already there
        batch = len(kwargs["input_ids"] if "input_ids" in kwargs else args[0])
        sizes.append(batch)
        if batch > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = small.model.register_forward_pre_hook(tight, with_kwargs=True)
    try:
        for name, measure in measures.items():
            sizes.clear()
            found = measure()
            assert max(sizes) > 3, name
            assert sizes[-1] <= 3, name
            if name == "truncation":
                compared(found, expected[name], "a batch of 3 for want of memory")
            else:
                pd.testing.assert_frame_equal(
                    found, expected[name], check_exact=False, rtol=1e-3, atol=1e-4
                )
    finally:
        handle.remove()


# --- not a number ---------------------------------------------------------------------------------


def broken(source: Path, target: Path, part: str) -> Path:
    """A checkpoint with one NaN in the first weight whose name holds ``part``."""
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    name = next(name for name in sorted(weights) if part in name)
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("layers.1.mlp.down_proj", "decoder layer 1 makes"),
        ("multi_modal_projector", "embedding, vision tower or projector makes"),
    ],
)
def test_nan_weights_stop_at_load_and_name_the_layer(
    part: str, where: str, tmp_path: Path, llava_path: Path
) -> None:
    source = llava_path
    if part.startswith("layers"):
        part = "language_model." + part if _has(source, "language_model." + part) else part
    folder = broken(source, tmp_path / "bad", part)
    with pytest.raises(ValueError, match=where) as caught:
        load_vlm(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert part in text
    assert "fetch the checkpoint again" in text


def _has(folder: Path, part: str) -> bool:
    return any(part in name for name in load_file(folder / "model.safetensors"))


def test_a_run_on_nan_weights_ends_in_one_line(tmp_path: Path, llava_path: Path) -> None:
    folder = broken(llava_path, tmp_path / "bad", "layers.1.mlp.down_proj")
    code = f"from visdepth_utils import load_vlm; load_vlm({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "decoder layer 1 makes NaN or infinity" in done.stderr.splitlines()[-1]


def test_numbers_that_overflow_later_stop_and_name_sample_and_layer(llava_path: Path) -> None:
    vlm = load_vlm(llava_path)
    samples = [tiny.sample(i) for i in range(2)]

    def overflow(_module: object, _args: tuple, output: object) -> object:
        state = output[0] if isinstance(output, tuple) else output
        state = state.clone()
        state[1, -1] = float("inf")
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handle = vlm.layers[0].register_forward_hook(overflow)
    try:
        for measure in (
            lambda: truncation_sweep(vlm, samples, max_new_tokens=2),
            lambda: layer_geometry(vlm, samples, n0=8, draws=2),
        ):
            with pytest.raises(
                ValueError, match=r"decoder layer 0 makes .* of sample 's1'; .*dtyp"
            ):
                measure()
    finally:
        handle.remove()


# --- determinism ----------------------------------------------------------------------------------


def test_batch_size_and_rows_at_once_change_no_answer(small: VLM) -> None:
    expected = sweep(small)
    for rows in (1, 5, 40):
        compared(sweep(small, max_rows=rows), expected, f"{rows} rows at once")
    one, two = (evaluate(small, load_task("chart", n=N), batch_size=size) for size in (1, 7))
    assert one["output"].tolist() == two["output"].tolist()


def test_the_verdict_does_not_depend_on_the_rows_at_once(small: VLM) -> None:
    task = load_task("reason", n=32)
    chains = [
        compare(
            reasoning_sweep(small, task, others=task.samples, max_rows=rows).assign(
                question=lambda table: table["sample"].map({s.id: s.prompt for s in task.samples})
            )
        )
        for rows in (None, 24)
    ]
    first, second = (verdict("C5", table, model=small.name) for table in chains)
    assert first.verdict == second.verdict
    print(f"C5: {first.verdict} both times, effects {first.effect:.6f} and {second.effect:.6f}")
    assert first.effect == pytest.approx(second.effect, abs=BOUND)


_THREADS = f"""
import sys, torch
from visdepth_utils import load_task, load_vlm, truncation_sweep
torch.set_num_threads(int(sys.argv[1]))
vlm = load_vlm({MODEL!r}, device="cpu")
truncation_sweep(vlm, load_task("vqa", n={N})).to_parquet(sys.argv[2])
"""


def test_one_or_two_threads_give_the_same_answers(tmp_path: Path) -> None:
    tables = []
    for name, threads in (("one", 1), ("again", 1), ("two", 2)):
        file = tmp_path / f"{name}.parquet"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("OMP_NUM_THREADS", None)
        subprocess.run(
            [sys.executable, "-c", _THREADS, str(threads), str(file)],
            cwd=ROOT,
            env=environment,
            check=True,
            timeout=300,
        )
        tables.append(file)
    one, again, two = tables
    assert one.read_bytes() == again.read_bytes()
    compared(pd.read_parquet(one), pd.read_parquet(two), "1 and 2 threads")
