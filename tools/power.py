"""How many images a claim needs on a model that was run: a number and a small figure."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from visdepth_utils.claims.power import power_curve, power_record, power_text
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.common.files import write_text
from visdepth_utils.plots.style import PANEL_INCHES, finish, styled

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
    _figure(curve, claim, images).savefig(figure, bbox_inches="tight", dpi=110)
    return [power_text(claim, curve, images), f"written: {data}, {figure.name}"]


def _stored(run: Path, name: str) -> pd.DataFrame:
    """Tables of this name, of the newest writing where rows are there twice."""
    files = sorted(run.glob(f"tables/{name}-*.parquet"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{run} holds no table {name}: run notebook 07 in it first")
    rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    keys = [k for k in ("sample", "style", "mode", "depth", "condition") if k in rows]
    return rows.drop_duplicates(keys, keep="last")


def _figure(curve: pd.DataFrame, claim: str, images: int) -> Figure:
    """Share of simulated runs that support a true claim, by number of images; the run's marked."""
    with styled():
        fig, ax = plt.subplots(figsize=PANEL_INCHES)
        ax.plot(curve["images"], curve["supported"], "o-", label="supported")
        ax.plot(curve["images"], curve["refuted"], "x:", label="not supported (an error)")
        ax.axvline(images, color="#444444", ls=":", lw=1.2, label="images of this run")
        for share in (0.8, 0.9):
            ax.axhline(share, color="#bbbbbb", lw=0.8)
        ax.set(xscale="log", ylim=(-0.03, 1.03), xlabel="images", ylabel="share of simulations")
        ax.set_xticks(curve["images"], [str(n) for n in curve["images"]])
        ax.minorticks_off()
        finish(fig, [ax], claim, "simulated from the run's own images at the effect of power_at")
    return fig
