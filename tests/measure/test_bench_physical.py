"""The GPU benchmark runs where it can be tried, and says no where it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "tests/benchmarks/bench_physical.py"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("name", ["Qwen2.5-VL-3B", "LLaVA-1.5-7B"])
def test_the_same_code_runs_on_tiny_models(name: str) -> None:
    done = call("--tiny", "--repeats", "1", "--batch", "1", name)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(f"| {name}")]
    assert len(rows) == 12
    found = {row[1]: float(row[2]) for row in rows}
    assert found.pop("all depths: loop - sweep, KL in nats") == 0  # to two digits
    assert all(value > 0 for value in found.values())
    assert "prefill at half depth, 1000 image tokens" in found  # what it is, a busy clock may deny
    assert "tiny models" in done.stdout.splitlines()[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = call()
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no CUDA device" in done.stderr and "--tiny" in done.stderr


def test_an_unknown_model_is_named() -> None:
    done = call("--tiny", "GPT-5")
    assert done.returncode == 2 and "no sizes for 'GPT-5'" in done.stderr
