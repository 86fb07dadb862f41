"""Save an untrained twin of a checkpoint, to be run like any model: it shows what nobody learnt."""

import shutil
from pathlib import Path

from visdepth_utils.common.files import REPO, explained
from visdepth_utils.models.checkpoints import locate
from visdepth_utils.models.load import load_vlm
from visdepth_utils.models.reading import quiet

WEIGHTS = (".safetensors", ".bin", ".index.json")


def save_untrained(
    model: str | Path, folder: str | Path | None = None, *, init_std: float | None = None
) -> Path:
    """Draw all weights of a checkpoint folder anew and save it, in the layout of the hub.

    ``folder`` None is ``results/models/<name>-random-init``; a name should keep "random-init", by
    which verdicts tell untrained models from trained ones. ``init_std`` None is the config's own.

    FileNotFoundError: no such checkpoint folder. ValueError: a hub id, or a ``folder`` that exists.
    """
    where = Path(locate(model))
    if not where.is_dir():
        raise ValueError(f"{model!r} is no folder: download it first, then give the folder")
    target = Path(folder or REPO / "results" / "models" / f"{where.name}-random-init")
    if target.exists():
        raise ValueError(f"{target} is there already: delete it, or name another folder")
    vlm = load_vlm(where, device="cpu", random_init=True, init_std=init_std)
    with quiet(), explained(target):
        vlm.model.save_pretrained(target)
    for file in where.iterdir():  # tokenizer, processor, chat template
        if file.is_file() and not file.name.endswith(WEIGHTS) and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
    (target / "recipe.json").unlink(missing_ok=True)  # it is the trained one's
    return target
