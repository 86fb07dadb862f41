"""What a user may choose for a run, checked before anything takes time.

Nothing here imports torch before it must know which devices there are.
"""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visdepth_utils.common.cells import assigned
from visdepth_utils.common.devices import SEEDS, check_device
from visdepth_utils.common.files import REPO, explained
from visdepth_utils.data.records import locate_source
from visdepth_utils.models.checkpoints import locate
from visdepth_utils.runs.engine import chosen_engine, ray_address

DEFAULT_MODEL = "data/minivlm/base"
DEFAULTS: dict[str, Any] = {
    "model": DEFAULT_MODEL,
    "source": None,
    "n_samples": None,
    "seed": 0,
    "device": "auto",
    "dtype": "auto",
    "profile": "quick",
}
PARAMETERS = (*DEFAULTS, "out_dir")
"""What the parameters cell of every notebook sets, in its order."""
PROFILES = ("quick", "full")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_INJECTED = "# Parameters\n"  # papermill's first line
_SLUG = re.compile(r"[^A-Za-z0-9._-]+")
_TABLE = re.compile(r"\.(jsonl|parquet)$")

Settings = dict[str, Any]


def chosen(names: Mapping[str, Any]) -> Settings:
    """The parameters of a notebook, as ``open_run`` takes them, out of its ``globals()``.

    ValueError if one is missing: the parameters cell was not run.
    """
    if lacking := [name for name in PARAMETERS if name not in names]:
        raise ValueError(f"no parameter {lacking[0]!r}: run the parameters cell first")
    return {name: names[name] for name in PARAMETERS}


def check_injected() -> None:
    """Refuse parameters that the notebook does not have: ValueError with those that there are.

    papermill warns of a misspelt name and goes on with the default, in hours of measurement that
    nobody asked for. It puts what it was given into a cell after that of the parameters.
    """
    ipython = sys.modules.get("IPython")  # where it was not imported there is no notebook
    shell = ipython.get_ipython() if ipython else None
    cells = list(shell.user_ns.get("In", ())) if shell else []
    for declared, given in itertools.pairwise(cells):
        if given.startswith(_INJECTED):
            known = assigned(declared)
            unknown = [name for name in assigned(given) if name not in known]
            if known and unknown:
                raise ValueError(
                    f"unknown parameter {unknown[0]!r}: this notebook has {', '.join(known)}"
                )


def check_settings(**chosen: Any) -> Settings:
    """Check what the user chose of the settings of ``open_run``, before anything takes time.

    Those that are missing are taken from ``DEFAULTS``. ValueError names the setting that is wrong
    and what would be right.
    """
    settings = DEFAULTS | chosen
    if unknown := set(chosen) - set(DEFAULTS):
        raise ValueError(f"unknown setting {min(unknown)!r}: choose of {', '.join(DEFAULTS)}")
    model, source, n_samples, seed, device, dtype, profile = settings.values()
    if not isinstance(model, str) or not model.strip():
        raise ValueError(f"model {model!r}: give a folder, e.g. data/minivlm/base, or a hub id")
    if not isinstance(source, str | None):
        raise ValueError(f"source {source!r}: give a folder, a file or a hub id as text, or None")
    for name, value, least in (("n_samples", n_samples, 1), ("seed", seed, 0)):
        if value is None and name == "n_samples":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} {value!r}: give a whole number of at least {least}")
    if seed >= SEEDS:
        raise ValueError(f"seed {seed}: give a whole number below {SEEDS}")
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    check_device(device)
    return settings | {"source": source or None}


def check_early(
    chosen: Settings, out: str | Path | None = None, jobs: int | None = None
) -> Settings:
    """Check all that can be wrong with a run before a model or torch is loaded.

    ``chosen`` as for ``check_settings``, ``out`` as for ``run_folder``; ``jobs``: notebooks at the
    same time, None leaves it open. ValueError names the setting that is wrong and what would be
    right; FileNotFoundError: no model or no data at that place; OSError: there can be no such
    results folder.
    """
    settings = check_settings(**chosen)
    locate(settings["model"])
    if settings["source"]:
        locate_source(settings["source"])
    if chosen_engine() == "ray":
        ray_address()
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: give a whole number of at least 1 (JOBS=)")
    folder = run_folder(settings, out)
    with explained(folder / "run"):
        for nearest in (folder, *folder.parents):
            with contextlib.suppress(FileNotFoundError):
                os.listdir(nearest)
                break
    return settings


def results_folder() -> Path:
    """Where runs are: ``results``, which the environment variable VISDEPTH_RESULTS moves.

    An absolute folder, not necessarily there; ValueError if the variable names a file.
    """
    folder = _base() / (os.environ.get("VISDEPTH_RESULTS") or "results")
    if folder.is_file():
        raise ValueError(f"VISDEPTH_RESULTS={str(folder)!r} is a file: name a folder, or unset it")
    return folder


def existing_run(name: str, holds: str = "claims.json") -> Path:
    """Folder of a run by its path or name; FileNotFoundError if none holds that."""
    for folder in (Path(name), REPO / name, results_folder() / name):
        if os.path.exists(folder / holds):  # unlike Path's, for a name of any length
            return folder.resolve()
    raise FileNotFoundError(
        f"no run {name!r:.200} with {holds}: make one with make reproduce, or give its folder or "
        "its name in results"
    )


def _base() -> Path:
    """Notebooks run in notebooks/, commands at the top: both must mean the same folder."""
    return REPO if (REPO / "pyproject.toml").is_file() else Path.cwd()


def run_folder(settings: Settings, out_dir: str | Path | None = None) -> Path:
    """Where a run's results go: an absolute folder, not created.

    ``out_dir`` is relative to the repository. Without it the folder is
    ``results/<model>-<profile>``, followed by whatever else was chosen: number of samples (None:
    the notebooks' own), seed, data, dtype. ValueError if ``out_dir`` is no path.
    """
    if out_dir:
        if not isinstance(out_dir, str | Path) or "\0" in str(out_dir):
            raise ValueError(f"out_dir {out_dir!r}: give a folder as text, e.g. results/mine")
        return (_base() / os.path.expanduser(out_dir)).resolve()
    n, seed, dtype = (settings[name] for name in ("n_samples", "seed", "dtype"))
    parts = [_last(settings["model"]), settings["profile"]]
    parts += [f"n{n}"] * (n is not None) + [f"seed{seed}"] * (seed != 0)
    parts += [_TABLE.sub("", _last(settings["source"]))] if settings["source"] else []
    parts += [dtype] * (dtype != "auto")
    return (results_folder() / _SLUG.sub("-", "-".join(parts))).resolve()


def shown_source(source: str | None) -> str:
    """How tables call the data: a hub id, or the last two parts of a path."""
    return "/".join(Path(source).parts[-2:]) if source else "embedded worlds"


def _last(path: str) -> str:
    """Name of a folder or file, or of what follows the owner in a hub id."""
    return Path(path).name or Path(path).resolve().name


def resolved_device(device: str) -> str:
    """The device that ``auto`` stands for here: ``cuda`` if there is one, else ``cpu``."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
