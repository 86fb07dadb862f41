"""Which code measures, and its version: what was measured by other code is measured again."""

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from visdepth_utils.common.cells import parsed

__all__ = ["MEASURING", "code_version", "hash_sources"]

# The folders whose code changes measured numbers. All others show, judge or organise.
MEASURING = ("data", "measure", "models")
_PACKAGE = Path(__file__).resolve().parents[1]
_NUMERIC_PACKAGES = ("numpy", "scikit-dimension", "torch", "transformers")


def hash_sources(*folders: Path) -> str:
    """Sha256 of the Python sources in folders by what they mean: layout does not count."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            tree = ast.dump(parsed(file.read_text(encoding="utf-8")))
            name = file.relative_to(folder.parent).as_posix()
            digest.update(f"{name}\0{tree}\0".encode())
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Version of the code that measures: our modules and the libraries that do the arithmetic.

    Taken once per process, so that a source edited afterwards does not lend its version to numbers
    that the code already loaded has made.
    """
    parts = [hash_sources(*(_PACKAGE / name for name in MEASURING))]
    for name in _NUMERIC_PACKAGES:
        try:
            parts.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} missing")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
