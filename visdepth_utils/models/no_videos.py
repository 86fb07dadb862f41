"""Read processors without torchvision where only a part that is not used needs it.

Families that also take videos: their video half needs torchvision, their image half does not, and
transformers loads both or neither. Here the video half is replaced by an object that says what is
missing when it is used. Pixtral: its processor takes one function from the torchvision backend,
which the PIL backend has as well.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, NoReturn
from unittest import mock

from transformers import ProcessorMixin
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import PushToHubMixin, is_torchvision_available


class NoVideos(PushToHubMixin):
    """Stands where a processor keeps its video half."""

    num_frames = fps = None  # asked for by a chat template, whether it shows videos or not

    def to_dict(self) -> dict[str, Any]:
        """Nothing: transformers writes processors with all their parts into its log."""
        return {}

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse, by a ValueError."""
        raise ValueError("videos need torchvision, which is not installed: give images")


@cache
def _pixtral() -> tuple[ModuleType, type[ProcessorMixin]]:
    """The package of Pixtral in transformers, and its processor with the PIL backend's helper."""
    package = importlib.import_module("transformers.models.pixtral")
    path = f"{package.__name__}.image_processing_"
    helper = importlib.import_module(f"{path}pil_pixtral")
    with mock.patch.dict(sys.modules, {f"{path}pixtral": helper}):
        return package, importlib.import_module(
            f"{package.__name__}.processing_pixtral"
        ).PixtralProcessor


@contextlib.contextmanager
def images_suffice() -> Iterator[None]:
    """Within the context, processors load without torchvision; where it is installed, as ever."""
    if is_torchvision_available():
        yield
        return
    check = ProcessorMixin.check_argument_for_proper_class

    def checked(self: ProcessorMixin, name: str, argument: object) -> object:
        # Without torchvision the class to compare with does not exist.
        return NoVideos if isinstance(argument, NoVideos) else check(self, name, argument)

    package, pixtral = _pixtral()
    with (
        mock.patch.object(package, pixtral.__name__, pixtral),
        mock.patch.object(AutoVideoProcessor, "from_pretrained", lambda *_a, **_k: NoVideos()),
        mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", checked),
    ):
        yield
