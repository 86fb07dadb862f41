"""Which code measures, and its version: what was measured by other code is measured again."""

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["NOT_MEASURING", "code_version", "hash_sources"]

# Modules that show, judge or organise, but change no measured number. Every other module counts as
# measuring, so a new one is never forgotten; sub-packages (minivlm, rules) do not.
NOT_MEASURING = frozenset(
    {
        "__init__",
        "__main__",
        "address",
        "bands",
        "claim_sections",
        "claims",
        "colab",
        "compare",
        "controls",
        "engine",
        "entries",
        "estimates",
        "explorer",
        "figure_style",
        "files",
        "footprint",
        "headless",
        "measuring_code",
        "multiplicity",
        "notebook_pages",
        "notebook_steps",
        "pilot",
        "plots",
        "plots_costs",
        "plots_grid",
        "plots_reasoning",
        "plots_recovery",
        "plots_sweeps",
        "plots_verdicts",
        "portable",
        "preflight",
        "probes",
        "progress",
        "provenance",
        "pruning",
        "raycluster",
        "raypool",
        "rayworker",
        "readme",
        "replication",
        "report",
        "reproduce",
        "runs",
        "schedule",
        "selection",
        "settings",
        "show",
        "stepcache",
        "streams",
        "tradeoff",
        "untrained",
        "verdict_table",
        "verdicts",
        "workload",
    }
)
_NUMERIC_PACKAGES = ("numpy", "scikit-dimension", "torch", "transformers")


def hash_sources(folder: Path, skip: frozenset[str] = frozenset()) -> str:
    """Hash Python sources by what they mean: comments and layout do not count.

    Args:
        folder: Searched for ``*.py``, sub-folders not included.
        skip: Module names to leave out.

    Returns:
        Hex digest (sha256).
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        if file.stem not in skip:
            tree = ast.dump(ast.parse(file.read_text(encoding="utf-8")))
            digest.update(f"{file.stem}\0{tree}\0".encode())
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Version of the code that measures: our modules and the libraries that do the arithmetic.

    Taken once per process, so that a source edited afterwards does not lend its version to numbers
    that the code already loaded has made.

    Returns:
        Hex digest (sha256).
    """
    parts = [hash_sources(Path(__file__).parent, NOT_MEASURING)]
    for name in _NUMERIC_PACKAGES:
        try:
            parts.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} missing")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
