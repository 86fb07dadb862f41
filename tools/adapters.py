"""Train the adapters of C6 that are shipped: every registered rate and seed, and the controls."""

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from visdepth_utils.claims.c6 import cut_depth
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.common.files import REPO
from visdepth_utils.data.tasks import load_task
from visdepth_utils.data.training_samples import training_samples
from visdepth_utils.measure.recovery import SHIPPED, adapter, registered, state_settings
from visdepth_utils.models.load import load_vlm
from visdepth_utils.runs.run import progress_line

FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "distillation.json",
    "losses.json",
    "validation.json",
)


def train_adapters(
    model: str | Path,
    steps: int | None = None,
    work: Path = REPO / "build" / "adapters",
    shipped: Path = SHIPPED,
) -> Iterator[Path]:
    """Train what data/adapters lacks; a training that was killed goes on where it was.

    Args:
        model: Folder of an embedded model.
        steps: Optimiser steps; None for the first budget in claims.yaml.
        work: Where the states to resume from lie.
        shipped: Where what is done is put.

    Yields:
        The folder of each adapter, when it is there.
    """
    entry = claim_entry("C6")
    rule = entry["distill"]
    vlm = load_vlm(str(model))
    depth, home = cut_depth(entry, vlm.n_layers), Path(model).name
    for role in ("recovers", "does not"):
        task = load_task(entry["tasks"][role], n=2, vlm=vlm)
        samples = training_samples(task, rule["samples"] + rule["validation"])
        for seed, state, rate in itertools.product(
            rule["seeds"], ("recovered", "shuffled"), rule["rates"]
        ):
            settings = registered(rule, depth, entry["mode"], rate=rate, seed=seed)
            settings = replace(settings, steps=steps or settings.steps)
            made = adapter(
                vlm,
                samples,
                state_settings(settings, state, vlm.n_layers),
                work / home,
                max_new_tokens=task.max_new_tokens,
                shipped=shipped,
                progress=progress_line(),
            )
            if shipped not in made.parents:
                target = shipped / home / made.name
                target.mkdir(parents=True, exist_ok=True)
                for name in FILES:
                    shutil.copy2(made / name, target / name)
                made = target
            yield made
