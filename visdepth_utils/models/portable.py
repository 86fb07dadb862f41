"""A loaded model travels to other processes as its recipe, and each process loads it once."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from visdepth_utils.models.checkpoints import locate

if TYPE_CHECKING:
    from visdepth_utils.vlm import VLM

# Weak: a model lives as long as something uses it, and two measurements of one model share it.
_LOADED: weakref.WeakValueDictionary[str, VLM] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Recipe:
    """How to load the same model again.

    Attributes:
        where: Absolute folder, or hub id.
        options: Arguments of ``load_vlm``, as (name, value).
        weights_hash: What must come out.
    """

    where: str
    options: tuple[tuple[str, Any], ...]
    weights_hash: str


def remembered(load: Callable[..., VLM]) -> Callable[..., VLM]:
    """Make a loader note its arguments in the model, so that the model can be pickled.

    Args:
        load: Its first argument is the folder or hub id.

    Returns:
        The loader, with the same signature.
    """

    @functools.wraps(load)
    def wrapped(*args: Any, **kwargs: Any) -> VLM:
        vlm = load(*args, **kwargs)
        given = inspect.signature(load).bind(*args, **kwargs).arguments
        where = locate(given.pop(next(iter(given))))
        if not given.get("device_map"):
            # Without index: on another machine, or in a worker that sees one GPU, it is another.
            given["device"] = vlm.device.type
        return replace(vlm, recipe=Recipe(where, tuple(sorted(given.items())), vlm.weights_hash))

    return wrapped


def reduce(vlm: VLM) -> tuple[Callable[[Recipe], VLM], tuple[Recipe]]:
    """What pickle stores of a model: a few words instead of gigabytes.

    Args:
        vlm: The model.

    Returns:
        For ``__reduce__``.

    Raises:
        ValueError: If it was not made by ``load_vlm``.
    """
    if vlm.recipe is None:
        raise ValueError(
            f"{vlm!r} cannot be sent to another process: only a model made by load_vlm can, "
            "because the other process loads it again"
        )
    return restore, (vlm.recipe,)


def restore(recipe: Recipe) -> VLM:
    """Load a model by its recipe, or give the one this process already has.

    Args:
        recipe: Of the model.

    Returns:
        The model.

    Raises:
        ValueError: If other weights are found there.
    """
    from visdepth_utils.vlm import load_vlm  # it imports this module

    key = repr(recipe)
    if (vlm := _LOADED.get(key)) is None:
        vlm = load_vlm(recipe.where, **dict(recipe.options))
        if vlm.weights_hash != recipe.weights_hash:
            raise ValueError(
                f"{recipe.where!r} holds other weights here than where the measurement was "
                "started: give all machines the same checkpoint"
            )
        _LOADED[key] = vlm
    return vlm
