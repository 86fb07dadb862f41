"""Where numbers come from: versions, machine, and the identity of model and data by content."""

import contextlib
import hashlib
import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from visdepth_utils.common.files import REPO
from visdepth_utils.data.records import cached_revision, files_behind, locate_source
from visdepth_utils.models.checkpoints import fetched, locate, weight_files, weights_hash

PACKAGES = (
    *("visdepth-utils", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy"),
    *("scikit-dimension", "pandas", "pyarrow", "matplotlib", "seaborn", "papermill"),
)
_STEERING = (
    *("ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_DEFAULT_FPMATH_MODE", "MKL_CBWR"),
    *("MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA"),
)
_BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make numbers and pictures, where installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """The machine in terms that matter for numbers and minutes; never its name or user."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def arithmetic() -> dict[str, Any]:
    """What can change the last digits of a number on the same machine with the same versions.

    Threads, instruction set and libraries of the CPU, determinism switches, and the variables of
    the environment that steer them.
    """
    config = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", config)
    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": blas.group(1) if blas else None,
        "onednn": torch.backends.mkldnn.is_available(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": {
            "deterministic": torch.backends.cudnn.deterministic,
            "benchmark": torch.backends.cudnn.benchmark,
        },
        "cuda": torch.version.cuda,
        "environment": {name: os.environ[name] for name in _STEERING if name in os.environ},
    }


def commit(folder: Path = REPO) -> str | None:
    """The git commit of the code, with ``+changes`` when tracked files differ from it.

    None outside of a git checkout or without git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        how = {"capture_output": True, "text": True, "timeout": 30, "check": True}
        return subprocess.run(command, **how).stdout.strip()

    try:
        # A package installed inside someone else's checkout must not borrow that checkout's commit.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def model_identity(model: str) -> dict[str, str | None]:
    """Which weights a model name (checkpoint folder or hub id) stands for, without loading them.

    ``name``, ``weights_hash``, ``revision`` (commit on the hub) and ``files_hash`` (config,
    tokenizer, chat template: they change numbers as weights do). A model of the hub that was not
    fetched yet has None for all but its name. FileNotFoundError if a folder is meant and holds no
    checkpoint; ValueError if it holds no safetensors weights, or names some that lie outside of it.
    """
    where = fetched(model)
    if where is None:
        return {"name": model, "weights_hash": None, "revision": None, "files_hash": None}
    beside = [file for file in sorted(where.glob("*")) if file.suffix in _BESIDE_WEIGHTS]
    return {
        "name": model,
        "weights_hash": _weights_hash(where, _state({str(f): f for f in weight_files(where)})),
        "revision": None if os.path.isdir(locate(model)) else where.name,
        "files_hash": _files_hash(_state({file.name: file for file in beside})),
    }


def data_identity(source: str | None) -> dict[str, str | None]:
    """Which data a source stands for: ``source``, and a hash over names and contents of its files.

    Of a name on the hub the hash is the commit, or None if it was not fetched yet.
    FileNotFoundError if the source is neither that nor there.
    """
    where = locate_source(source) if source else REPO / "data" / "worlds"
    if isinstance(where, str):
        repo, _, revision = where.partition("@")
        return {"source": source, "hash": cached_revision(repo, revision or "main")}
    files = files_behind(where)
    found = _files_hash(_state(files)) if files else None
    return {"source": source or "embedded worlds", "hash": found}


_State = tuple[tuple[str, str, int, int], ...]


def _state(files: dict[str, Path]) -> _State:
    """Name, path, size and time of files: while they stay, so do the contents."""
    return tuple(
        (name, str(f), f.stat().st_size, f.stat().st_mtime_ns) for name, f in files.items()
    )


@cache
def _weights_hash(where: Path, _files: _State) -> str:
    """Hash once per state of the files: weights of gigabytes take seconds."""
    return weights_hash(str(where), "")


@cache
def _files_hash(state: _State) -> str:
    """Hash names and contents, once per state of the files."""
    digest = hashlib.sha256()
    for name, file, _, _ in state:
        with Path(file).open("rb") as handle:
            digest.update(f"{name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def _cpu_name() -> str:
    """Model name of the processor, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
