"""What image tokens do inside a vision language model's decoder, measured layer by layer.

The public names are loaded on first use, so that ``import visdepth_utils`` costs nothing.
"""

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visdepth_utils.claims import verdict
    from visdepth_utils.forcing import token_kl
    from visdepth_utils.grid import substitution_grid
    from visdepth_utils.layerwise import layer_geometry
    from visdepth_utils.reasoning import reasoning_sweep
    from visdepth_utils.recovery import distill
    from visdepth_utils.sweeps import truncation_sweep
    from visdepth_utils.tasks import load_task
    from visdepth_utils.vlm import load_vlm

# Threads that wait for work spin for long by default. Where anything else runs on the machine they
# spin away the time of whoever has the work: beside one busy process on two cores a sweep took 53 s
# so, and 7 s with this. Read by torch's OpenMP when it is loaded; what the user set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Libraries ask for notebook widgets on import and warn if there are none; we use plain text.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOME = {
    "distill": "recovery",
    "load_vlm": "vlm",
    "load_task": "tasks",
    "layer_geometry": "layerwise",
    "substitution_grid": "grid",
    "reasoning_sweep": "reasoning",
    "token_kl": "forcing",
    "truncation_sweep": "sweeps",
    "verdict": "claims",
}

__all__ = [
    "distill",
    "layer_geometry",
    "load_task",
    "load_vlm",
    "reasoning_sweep",
    "substitution_grid",
    "token_kl",
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
