"""A small figure of power by number of images."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from visdepth_utils.plots.bands import need
from visdepth_utils.plots.style import PANEL_INCHES, finish, styled


def power_by_images(curve: pd.DataFrame, claim: str, images: int) -> Figure:
    """Share of simulated runs that support a true claim, by number of images (``power_curve``).

    ``images`` of the run itself are marked; ``claim`` is the title. ValueError: a missing column,
    or no rows.
    """
    need(curve, {"images", "supported", "refuted"}, "curve", "power_curve")
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
