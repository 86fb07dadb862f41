"""What a run is one of: model, revision, data, N, seed, profile, dtype; and how two differ."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from visdepth_utils.common.files import read_object
from visdepth_utils.models.checkpoints import fetched

__all__ = ["CONTENTS", "Difference", "differences", "dtype_of", "refusal"]

CONTENTS = "contents of the data"
"""Name of the difference that correcting one's own data makes."""


class Difference(NamedTuple):
    """A setting of which two runs have different values, as text."""

    name: str
    old: str
    new: str


def dtype_of(settings: Mapping[str, Any], device: str) -> str:
    """The dtype that ``auto`` stands for: float32 on a CPU, that of the file elsewhere.

    ``auto`` where the file does not say or was not fetched.
    """
    if settings["dtype"] != "auto" or device == "cpu":
        return "float32" if settings["dtype"] == "auto" else settings["dtype"]
    where = fetched(settings["model"])
    config = read_object(where / "config.json") if where else {}
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """What keeps the numbers of two runs from standing in one folder: the settings that differ.

    Both are ``settings, dtype, model, data`` as provenance.json holds them. What the old one lacks
    is not compared, nor are hashes that were not known yet. A model differs by its name, else by
    revision or contents.
    """
    ours, theirs = old.get("settings") or {}, new["settings"]
    pairs = [(name, ours, theirs) for name in ("n_samples", "seed", "profile")]
    found = [
        Difference(name, _shown(a[name]), _shown(b[name]))
        for name, a, b in [*pairs, ("dtype", old, new)]
        if name in a and a[name] != b[name]
    ]
    names = [_short(side["model"]) for side in (ours, theirs) if "model" in side]
    if len(set(names)) > 1:
        found.append(Difference("model", ours["model"], theirs["model"]))
    else:
        for key in ("revision", "weights_hash", "files_hash"):
            a, b = ((side.get("model") or {}).get(key) for side in (old, new))
            if a and b and a != b:
                name = {"weights_hash": "weights", "files_hash": "config or tokenizer files"}
                found.append(Difference(name.get(key, key), a[:12], b[:12]))
                break
    a, b = ((side.get("data") or {}).get("hash") for side in (old, new))
    if a and b and a == b:
        return found
    if "source" in ours and ours["source"] != theirs["source"]:
        found.append(Difference("source", _shown(ours["source"]), _shown(theirs["source"])))
    elif a and b:
        found.append(Difference(CONTENTS, a[:12], b[:12]))
    return found


def refusal(folder: Path, found: list[Difference]) -> str:
    """Why a run cannot go on in a folder, and what to do, in one line."""
    old = ", ".join(f"{one.name} {one.old}" for one in found)
    new = ", ".join(f"{one.name} {one.new}" for one in found)
    mend = "give another folder (OUT=, out_dir in a notebook), or delete that one"
    if [one.name for one in found] == [CONTENTS]:
        mend += "; make reproduce measures all of it again"
    return f"{folder} holds a run with {old}, this one has {new}: {mend}"


def _shown(value: Any) -> str:
    """A value as the user gave it."""
    return "default" if value is None else repr(value) if isinstance(value, str) else str(value)


def _short(path: str) -> str:
    """The last two parts of a folder, which stay where it is moved or named in full."""
    return "/".join(Path(path).parts[-2:])
