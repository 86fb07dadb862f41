"""Find checkpoints, name and hash them: nothing is loaded here."""

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from visdepth_utils.common.files import REPO, places, read_object

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_name(path_or_id: str | Path) -> str:
    """How tables and verdicts call a model: the last two parts of its folder, or its hub id."""
    return "/".join(Path(locate(path_or_id)).parts[-2:])


def locate(path_or_id: str | Path) -> str:
    """Tell a folder from a hub id ``owner/name``, which is left as it is; nothing is loaded.

    A folder is looked for in the working directory, then in the repository; it comes back absolute.

    Raises as ``weight_files``; FileNotFoundError also for neither of them, or a folder without
    ``config.json``; ValueError for one without safetensors weights, or with an adapter.
    """
    name = str(path_or_id)
    for folder in (Path(os.path.expanduser(name)), REPO / name):
        if os.path.isdir(folder):  # unlike Path's, it takes a name of any length
            break
    else:
        if _HUB_ID.fullmatch(name) and not name.startswith("data/"):
            return name
        raise FileNotFoundError(
            f"no checkpoint folder {name!r:.200} (looked in {places()}): "
            "give an existing folder, e.g. data/minivlm/base, or a hub id owner/name"
        )
    if (folder / "assemble.json").is_file():
        from visdepth_utils.models.assemble import assembled

        return str(assembled(Path(folder)))
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
    weight_files(folder)
    return str(folder.resolve())


def fetched(path_or_id: str | Path) -> Path | None:
    """Folder of a checkpoint that is here with all its weights, or None.

    Of a hub id it is the one in the cache. Raises as ``locate``.
    """
    where = locate(path_or_id)
    if os.path.isdir(where):
        return Path(where)
    config = try_to_load_from_cache(where, "config.json")
    if not isinstance(config, str):
        return None
    try:
        return Path(config).parent if weight_files(Path(config).parent) else None
    except FileNotFoundError:
        return None


def weight_files(folder: Path) -> list[Path]:
    """The weights that transformers reads from a folder, by name: one file, or an index's shards.

    None where there is neither such a file nor an index.
    FileNotFoundError: a file that is named is not there. ValueError: a name that leads out of the
    folder, or a damaged index.
    """
    try:
        named = read_object(folder / "config.json").get("transformers_weights")
    except ValueError:  # the loader says what is wrong with it
        named = None
    names = [named or SAFE_WEIGHTS_NAME]
    by = "config.json"
    if not named and not (folder / names[0]).is_file():
        names = [SAFE_WEIGHTS_INDEX_NAME] if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file() else []
    if names and str(names[0]).endswith(".index.json"):
        by = names[0]
        shards = read_object(_inside(folder, names[0], "config.json")).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{folder / by} names no shards: fetch the checkpoint again")
        names = sorted(set(map(str, shards.values())))
    return [_inside(folder, name, by) for name in names]


def _inside(folder: Path, name: str, by: str) -> Path:
    """A file of a checkpoint that another one names."""
    there = os.path.abspath(folder / name)
    if not Path(there).is_relative_to(os.path.abspath(folder)):
        raise ValueError(
            f"{folder / by} names weights outside of its folder ({name!r:.200}): "
            "put them into the folder and name them there"
        )
    if not os.path.isfile(there):
        raise FileNotFoundError(
            f"{folder} lacks {name!r:.200}, which its {by} names: fetch the checkpoint again"
        )
    return Path(there)


def weights_hash(where: str, settings: str, **hub: object) -> str:
    """Sha256 over the weights that are read, in order of name, and over how the model was drawn.

    Files of the hub cache are stored under their own sha256, which is taken from there.
    ``settings`` is empty for trained weights, else the random initialisation.
    """
    folder = Path(where)
    if not folder.is_dir():
        folder = Path(str(cached_file(where, "config.json", **hub))).parent
    files = weight_files(folder) or [folder / "config.json"]
    digest = hashlib.sha256(settings.encode())
    for file in files:
        real = file.resolve()
        if real.parent.name == "blobs" and len(real.name) == 64:
            digest.update(real.name.encode())
        else:
            with real.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").hexdigest().encode())
    return digest.hexdigest()
