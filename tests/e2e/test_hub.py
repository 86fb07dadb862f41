"""The README's model of the hub, by name, from a stand-in for the hub: the library's own cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "Qwen/Qwen2.5-VL-3B-Instruct"
COMMIT = "c0ffee" + "0" * 34


def test_a_model_by_its_name_is_measured_in_a_dry_run(qwen_path: Path, tmp_path: Path) -> None:
    """The device is the CPU here; everything else is the README's line."""
    (line,) = (
        text
        for text in (ROOT / "README.md").read_text().splitlines()
        if NAME in text and "DRY=1" in text
    )
    assert "N=64 DEVICE=cuda DRY=1" in line
    repo = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(qwen_path, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    env |= {"VISDEPTH_RESULTS": str(tmp_path / "results")}
    options = ["--model", NAME, "--n", "64", "--device", "cpu", "--dry"]
    done = subprocess.run(
        [sys.executable, "-m", "visdepth_utils", "reproduce", *options],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.lower()
    assert all(word in told for word in ("min", "memory", "disk"))
    # With another name there is nothing to fetch.
    options[1] = "Qwen/of-another-name"
    failed = subprocess.run(
        [sys.executable, "-m", "visdepth_utils", "reproduce", *options],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2
    assert "Qwen/of-another-name" in failed.stderr
