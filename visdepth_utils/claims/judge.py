"""All that is said of a claim on one model: our verdict, the plain reading, the other analyses."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from visdepth_utils.claims.once import same_tables
from visdepth_utils.claims.published import published, what_separates
from visdepth_utils.claims.registry import claim_entry, verdict
from visdepth_utils.claims.specifications import robustness, specifications
from visdepth_utils.claims.verdict import Verdict

__all__ = ["judge"]


@same_tables()
def judge(
    claim: str,
    table: pd.DataFrame,
    *,
    control: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
    model: str = "",
    full: bool = False,
    path: str | None = None,
) -> Verdict:
    """Decide a claim by its rule, and say how the plain reading and other analyses decide it.

    Args:
        claim: Identifier, e.g. ``"C4"``.
        table: As for ``verdict``.
        control: As for ``verdict``.
        model: Name for the record.
        full: Judge all registered analyses; otherwise as many as ``most`` in claims.yaml says.
        path: Claims file; None for data/claims.yaml.

    Returns:
        The verdict with ``plain``, ``separates``, ``robustness`` and ``analyses``; the last two are
        empty for a claim without registered choices.

    Raises:
        ValueError: As ``verdict``.
    """
    ours = verdict(claim, table, control=control, model=model, path=path)
    plain = published(claim, table, control=control, path=path)
    ours = replace(ours, plain=plain, separates=what_separates(ours, plain, path))
    entry = claim_entry(claim, path)
    if "specifications" not in entry:
        return ours
    most = None if full else entry["common"]["specifications"]["most"]
    analyses = specifications(claim, table, control=control, most=most, path=path)
    return replace(ours, robustness=robustness(claim, analyses, path=path), analyses=analyses)
