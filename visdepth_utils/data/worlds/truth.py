"""What the pictures of a world hold and where, as their scenes say it."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from visdepth_utils.data.samples import WORLDS
from visdepth_utils.data.worlds import questions
from visdepth_utils.data.worlds.world import DISTILL_SEEDS, Bar, Scene, Thing, boxes, draw_scene

SCENES = 24


@dataclass(frozen=True)
class Held:
    """Something in a picture: its box, in shares of width and height, and the words for it."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    words: tuple[str, ...]


def held_objects(
    image_ids: Collection[str], source: str | Path | None = None
) -> dict[str, list[Held]]:
    """Objects (colour and shape) or bars (colour) of pictures, by image id.

    ``source`` is a folder in the layout of the embedded worlds, which None stands for. Pictures
    whose scene is not stored there are left out; of other data, all are.
    """
    file = Path(source or WORLDS) / "images.parquet"
    columns = ["image_id", "scene", "seed"]
    if not file.is_file() or not set(columns) <= set(pq.read_schema(file).names):
        return {}
    table = pd.read_parquet(file, columns=columns)
    found = {}
    for row in table[table["image_id"].isin(set(image_ids))].dropna().to_dict("records"):
        scene = _scene(json.loads(row["scene"]))
        drawn = zip([*scene.things, *scene.bars], boxes(scene, int(row["seed"])), strict=True)
        found[row["image_id"]] = [Held(box, _words(one)) for one, box in drawn]
    return found


def sentences(n: int = SCENES) -> list[str]:
    """Captions and questions about n scenes that no frozen set holds, the same at every call."""
    out = []
    for seed in DISTILL_SEEDS[:n]:
        rng, scene = np.random.default_rng(seed), draw_scene(seed, "shapes")
        out += [f(scene, rng) for f in (questions.caption, questions.vqa)]
        out.append(questions.chart(draw_scene(seed, "charts"), rng))
    said = (q.reference if q.task == "caption" else f"{q.prompt} {q.reference}" for q in out)
    return list(dict.fromkeys(said))


def _scene(stored: dict) -> Scene:
    """A scene from how it is stored."""
    things = tuple(Thing(**thing) for thing in stored.get("things", ()))
    return Scene(stored["kind"], things, tuple(Bar(**bar) for bar in stored.get("bars", ())))


def _words(one: Thing | Bar) -> tuple[str, ...]:
    """What an object is called."""
    return (one.colour, one.shape) if isinstance(one, Thing) else (one.colour,)
