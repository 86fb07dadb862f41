"""What image tokens do inside a vision language model's decoder, measured layer by layer.

The public names are loaded on first use, so that ``import visdepth_utils`` costs nothing.
"""

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visdepth_utils.claims.judge import judge
    from visdepth_utils.claims.registry import verdict
    from visdepth_utils.data.tasks import load_task
    from visdepth_utils.measure.distillation import Distillation
    from visdepth_utils.measure.geometry.layer_geometry import layer_geometry
    from visdepth_utils.measure.hiding import Hide, hiding_sweep
    from visdepth_utils.measure.interventions import substituted, truncated
    from visdepth_utils.measure.reasoning import reasoning_sweep
    from visdepth_utils.measure.recovery import distill
    from visdepth_utils.measure.savings_table import savings_table
    from visdepth_utils.measure.substitution import substitution_grid
    from visdepth_utils.measure.teacher_forcing import token_kl
    from visdepth_utils.measure.token_lens import named_share, token_lens
    from visdepth_utils.measure.truncation import truncation_sweep
    from visdepth_utils.models.hooks import capture
    from visdepth_utils.models.load import load_vlm

# Threads that wait for work spin for long by default. Where anything else runs on the machine they
# spin away the time of whoever has the work: beside one busy process on two cores a sweep took 53 s
# so, and 7 s with this. Read by torch's OpenMP when it is loaded; what the user set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Libraries ask for notebook widgets on import and warn if there are none; we use plain text.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOME = {
    "Distillation": "measure.distillation",
    "Hide": "measure.hiding",
    "capture": "models.hooks",
    "hiding_sweep": "measure.hiding",
    "savings_table": "measure.savings_table",
    "substituted": "measure.interventions",
    "truncated": "measure.interventions",
    "distill": "measure.recovery",
    "load_vlm": "models.load",
    "load_task": "data.tasks",
    "layer_geometry": "measure.geometry.layer_geometry",
    "substitution_grid": "measure.substitution",
    "reasoning_sweep": "measure.reasoning",
    "named_share": "measure.token_lens",
    "token_kl": "measure.teacher_forcing",
    "token_lens": "measure.token_lens",
    "truncation_sweep": "measure.truncation",
    "judge": "claims.judge",
    "verdict": "claims.registry",
}

__all__ = [
    "Distillation",
    "Hide",
    "capture",
    "distill",
    "hiding_sweep",
    "judge",
    "layer_geometry",
    "load_task",
    "load_vlm",
    "named_share",
    "reasoning_sweep",
    "savings_table",
    "substituted",
    "substitution_grid",
    "token_kl",
    "token_lens",
    "truncated",
    "truncation_sweep",
    "verdict",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted([*globals(), *_HOME])
