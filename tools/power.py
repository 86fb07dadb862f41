"""How many images a claim needs on a model that was run: a number and a small figure."""

import json
from pathlib import Path

import pandas as pd

from visdepth_utils.claims.power import power_curve, power_record, power_text
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.common.files import write_text
from visdepth_utils.plots.power import power_by_images

__all__ = ["power"]


def power(run: Path, claim: str) -> list[str]:
    """Simulate from the answers of a finished run; write number and figure beside it.

    Args:
        run: Its folder.
        claim: Identifier.

    Returns:
        The number in a line, and the files.

    Raises:
        ValueError: Power is not available for this claim.
        FileNotFoundError: The run holds no table of the claim.
    """
    mode = claim_entry(claim)["mode"] if claim == "C7" else ""
    table = _stored(run, f"c7_*_{mode}") if mode else pd.DataFrame()
    controls = {"conditions": _stored(run, "c7_conditions")} if mode else {}
    curve = power_curve(claim, table, controls)
    images = table["image"].nunique()
    data, figure = (run / f"power-{claim}.{end}" for end in ("json", "png"))
    facts = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    record = power_record(claim, curve, facts["settings"]["model"])
    write_text(data, json.dumps(record, indent=1) + "\n")
    power_by_images(curve, claim, images).savefig(figure, bbox_inches="tight", dpi=110)
    return [power_text(claim, curve, images), f"written: {data}, {figure.name}"]


def _stored(run: Path, name: str) -> pd.DataFrame:
    """Tables of this name, of the newest writing where rows are there twice."""
    files = sorted(run.glob(f"tables/{name}-*.parquet"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{run} holds no table {name}: run notebook 07 in it first")
    rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    keys = [k for k in ("sample", "style", "mode", "depth", "condition") if k in rows]
    return rows.drop_duplicates(keys, keep="last")
