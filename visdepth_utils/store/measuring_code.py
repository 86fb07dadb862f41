"""Which code measures, and its version: what was measured by other code is measured again."""

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["NOT_MEASURING", "code_version", "hash_sources"]

# Modules and sub-packages that show, judge or organise, but change no measured number. Every other
# one counts as measuring, so a new one is never forgotten.
NOT_MEASURING = frozenset(
    {
        "__init__",
        "__main__",
        "address",
        "calibration",
        "claims",
        "cluster",
        "colab",
        "controls",
        "engine",
        "minivlm",
        "multiplicity",
        "plots",
        "preflight",
        "replication",
        "report",
        "reproduce",
        "rules",
        "running",
        "runs",
        "settings",
        "show",
        "store",
        "tradeoff",
        "verdicts",
    }
)
_PACKAGE = Path(__file__).resolve().parents[1]
_NUMERIC_PACKAGES = ("numpy", "scikit-dimension", "torch", "transformers")


def hash_sources(folder: Path, skip: frozenset[str] = frozenset()) -> str:
    """Hash Python sources by what they mean: comments and layout do not count.

    Args:
        folder: Searched for ``*.py``, sub-folders too.
        skip: Names of modules and sub-folders of it to leave out.

    Returns:
        Hex digest (sha256).
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        name = file.relative_to(folder).with_suffix("")
        if name.parts[0] not in skip:
            tree = ast.dump(ast.parse(file.read_text(encoding="utf-8")))
            digest.update(f"{name.as_posix()}\0{tree}\0".encode())
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Version of the code that measures: our modules and the libraries that do the arithmetic.

    Taken once per process, so that a source edited afterwards does not lend its version to numbers
    that the code already loaded has made.

    Returns:
        Hex digest (sha256).
    """
    parts = [hash_sources(_PACKAGE, NOT_MEASURING)]
    for name in _NUMERIC_PACKAGES:
        try:
            parts.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} missing")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
