"""Accuracy of the embedded models, task by task: `make eval-minivlm`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from visdepth_utils.common.errors import Parser
from visdepth_utils.common.files import read_object, write_text
from visdepth_utils.data.tasks import EMBEDDED, load_task
from visdepth_utils.measure.evaluation import CONDITIONS, accuracy_table, chance, evaluate, row_name

if TYPE_CHECKING:
    from visdepth_utils.models.vlm import VLM

FLOORS = {
    "base": {"mcq": 0.90, "vqa": 0.92, "caption": 0.93, "reason (long)": 0.88, "chart": 0.80},
    "smol": {"mcq": 0.85, "vqa": 0.85, "caption": 0.80, "reason (long)": 0.75, "chart": 0.60},
}
"""What a model must reach with the picture (others are held to those of `base`); with another's it
must fall to within 8 points of chance.
"""
CHANCE_MARGIN = 0.08


def evaluate_all(
    vlm: VLM,
    n: int | None = None,
    conditions: Sequence[str] = tuple(CONDITIONS),
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """All embedded tasks (all styles of `reason`) under the conditions, as one accuracy table."""
    parts, chances = [], {}
    for name, budget in EMBEDDED.items():
        for style in budget if isinstance(budget, dict) else (None,):
            task = load_task(name, n=n, style=style)
            chances[row_name(name, style or "")] = chance(task)
            parts += [evaluate(vlm, task, c, progress=progress) for c in conditions]
    return accuracy_table(pd.concat(parts, ignore_index=True), chances)


def misses(table: pd.DataFrame, model: str = "base") -> list[str]:
    """Which of a model's floors the table misses, in words; empty if it meets them all."""
    out = []
    for name, floor in FLOORS.get(model, FLOORS["base"]).items():
        row = table.loc[name]
        if row["full"] < floor:
            out.append(f"{name}: {row['full']:.3f} is below the floor {floor}")
        if "other" in row and row["other"] > row["chance"] + CHANCE_MARGIN:
            out.append(
                f"{name}: {row['other']:.3f} with another picture, chance is {row['chance']:.3f}"
            )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracy tables of models and write them as JSON, beside those of other models.

    Returns:
        0, or 1 if `base`, a seed of it, or `smol` misses a floor. A model whose decoder is not
        installed is left out, with the line that installs it.
    """
    from visdepth_utils.common.progress import progress_line
    from visdepth_utils.models.assemble import MANIFEST
    from visdepth_utils.models.load import load_vlm

    parser = Parser(prog="python -m tools eval-minivlm", description=main.__doc__.splitlines()[0])
    shipped = sorted(str(p.parent) for p in Path("data/minivlm").glob("*/recipe.json"))
    parser.add_argument("models", nargs="*", default=shipped, help="default: all shipped models")
    parser.add_argument("--n", type=int, default=None, help="samples per task; all by default")
    parser.add_argument("--out", type=Path, default=Path("results/eval-minivlm.json"))
    args = parser.parse_args(argv)
    found, failed = {}, False
    # Before the measurement, which would be lost.
    earlier = read_object(args.out) if args.out.exists() else {}
    for path in args.models:
        name = Path(path).name
        try:
            vlm = load_vlm(path)
        except FileNotFoundError as error:
            if not (Path(path) / MANIFEST).is_file():
                raise
            print(f"{name} is left out: {error}")
            continue
        table = evaluate_all(vlm, args.n, progress=progress_line())
        missed = misses(table, name)
        found[name] = {
            "weights_hash": vlm.weights_hash,
            "accuracy": {k: {c: float(v) for c, v in row.items()} for k, row in table.iterrows()},
            "floors missed": missed,
        }
        print(f"\n{path}\n{table.to_string()}\n" + ("\n".join(missed) or "all floors met"))
        failed |= bool(missed) and name.startswith(("base", "smol"))
    write_text(args.out, json.dumps(dict(sorted((earlier | found).items())), indent=1) + "\n")
    print(f"written: {args.out}")
    return int(failed)
