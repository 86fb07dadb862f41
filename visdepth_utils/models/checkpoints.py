"""Find checkpoints, name and hash them: nothing is loaded here."""

import hashlib
import os
import re
from pathlib import Path

from transformers.utils import cached_file

REPO = Path(__file__).resolve().parents[2]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_name(path_or_id: str | Path) -> str:
    """How tables and verdicts call a model: the last two parts of its folder, or its hub id."""
    return "/".join(Path(locate(path_or_id)).parts[-2:])


def locate(path_or_id: str | Path) -> str:
    """Tell a folder from a hub id, before anything is loaded.

    Args:
        path_or_id: A checkpoint folder (relative to the working directory, else to the repository),
            or a hub id ``owner/name``.

    Returns:
        Absolute folder, or the hub id unchanged.

    Raises:
        FileNotFoundError: Neither; or a folder without ``config.json``.
        ValueError: A folder without safetensors weights, or with an adapter.
    """
    name = str(path_or_id)
    for folder in (Path(os.path.expanduser(name)), REPO / name):
        if os.path.isdir(folder):  # unlike Path's, it takes a name of any length
            break
    else:
        if _HUB_ID.fullmatch(name) and not name.startswith("data/"):
            return name
        raise FileNotFoundError(
            f"no checkpoint folder {name!r:.200} (looked in {Path.cwd()} and {REPO}): "
            "give an existing folder, e.g. data/minivlm/base, or a hub id owner/name"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{name!r} holds no config.json: give a folder in Hugging Face layout"
        )
    if (folder / "adapter_config.json").is_file():
        # transformers would read the weights of the base model that this file names.
        raise ValueError(
            f"{name!r} holds an adapter (adapter_config.json) beside its config.json: "
            "merge it with merge_and_unload() and save the whole model, or take the file away"
        )
    if not list(folder.glob("*.safetensors")):
        other = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "no weights at all"
        raise ValueError(
            f"{name!r} holds no .safetensors weights ({other}): "
            "save it again with model.save_pretrained(folder), which writes safetensors"
        )
    return str(folder.resolve())


def weights_hash(where: str, settings: str, **hub: object) -> str:
    """Sha256 over the safetensors files, in order of name, and over how the model was drawn.

    Files of the hub cache are stored under their own sha256, which is taken from there.

    Args:
        where: Folder or hub id.
        settings: Empty for trained weights; the random initialisation otherwise.
        **hub: ``revision``.

    Returns:
        Hex digest.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = Path(str(cached_file(where, "config.json", **hub))).parent
    files = sorted(folder.glob("*.safetensors")) or [folder / "config.json"]
    digest = hashlib.sha256(settings.encode())
    for file in files:
        real = file.resolve()
        if real.parent.name == "blobs" and len(real.name) == 64:
            digest.update(real.name.encode())
        else:
            with real.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").hexdigest().encode())
    return digest.hexdigest()
