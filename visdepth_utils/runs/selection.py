"""Which rows of which data a run used, kept beside its tables.

A table's key holds the content hash of its task; ``selection/<task>-<hash>.json`` says what that
hash stands for: source, revision, split, prompt, seed, the samples taken and the rows skipped.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from visdepth_utils.common.files import write_text

if TYPE_CHECKING:
    from visdepth_utils.data.tasks import Task

__all__ = ["FOLDER", "keep_selection"]

FOLDER = "selection"


def keep_selection(folder: Path, task: "Task") -> dict[str, str]:
    """Write down what a task was made of.

    Args:
        folder: Of the run.
        task: As ``load_task`` returned it.

    Returns:
        Name of the file, without ending, to what it says in one line.
    """
    name = f"{task.name}-{task.content_hash[:12]}"
    facts = {"task": task.name, "content_hash": task.content_hash, "source": task.source}
    facts |= {"samples": [sample.id for sample in task.samples], **task.selection}
    text = json.dumps(facts, indent=1, ensure_ascii=False, default=str)
    write_text(folder / FOLDER / f"{name}.json", text + "\n")
    said = [f"{len(task)} samples of {task.source}"]
    said += [f"{key} {facts[key]}" for key in ("revision", "split", "subset") if facts.get(key)]
    if skipped := facts.get("skipped"):
        said.append(f"{len(skipped)} bad rows skipped")
    return {name: ", ".join(said)}
