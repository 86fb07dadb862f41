"""What a user may choose for a run, checked before anything takes time."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from visdepth_utils.checkpoints import REPO

PROFILES = ("quick", "full")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")

Settings = dict[str, Any]


def check_settings(
    *,
    model: str,
    source: str | None,
    n_samples: int | None,
    seed: int,
    device: str,
    dtype: str,
    profile: str,
) -> Settings:
    """Check what the user chose, before anything takes time.

    Args:
        model: Checkpoint folder or hub id.
        source: Data other than the embedded worlds; None or "" for these.
        n_samples: Samples per task; None leaves the choice to the profile.
        seed: Of every draw.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        profile: ``quick`` or ``full``.

    Returns:
        The settings as a dictionary.

    Raises:
        ValueError: Naming the setting that is wrong and what would be right.
    """
    if not isinstance(model, str) or not model.strip():
        raise ValueError(f"model {model!r}: give a folder, e.g. data/minivlm/base, or a hub id")
    for name, value, least in (("n_samples", n_samples, 1), ("seed", seed, 0)):
        if value is None and name == "n_samples":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} {value!r}: give a whole number of at least {least}")
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    if not _DEVICE.fullmatch(str(device)):
        raise ValueError(f"unknown device {device!r}: choose auto, cpu, cuda, cuda:N or mps")
    kind = device.partition(":")[0]
    if (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(f"device {device!r} is not there on this machine: use device auto or cpu")
    return {
        "model": model,
        "source": source or None,
        "n_samples": n_samples,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "profile": profile,
    }


def run_folder(model: str, profile: str, out_dir: str | Path | None = None) -> Path:
    """Where a run's results go.

    Args:
        model: Checkpoint folder or hub id.
        profile: ``quick`` or ``full``.
        out_dir: Explicit folder, relative to the repository; None or "" for
            ``results/<model>-<profile>`` (the environment variable VISDEPTH_RESULTS moves
            ``results``).

    Returns:
        Absolute folder, not created.
    """
    # Notebooks run in notebooks/, commands at the top: both must mean the same folder.
    base = REPO if (REPO / "pyproject.toml").is_file() else Path.cwd()
    if out_dir:
        return (base / Path(out_dir).expanduser()).resolve()
    results = base / os.environ.get("VISDEPTH_RESULTS", "results")
    name = _SLUG.sub("-", Path(model).name or Path(model).resolve().name)
    return (results / f"{name}-{profile}").resolve()


def resolved_device(device: str) -> str:
    """The device that ``auto`` stands for here.

    Args:
        device: As chosen.

    Returns:
        ``cuda`` for ``auto`` if there is a CUDA device, else ``cpu``; any other choice unchanged.
    """
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
