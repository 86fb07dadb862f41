"""Read processors of families that also take videos where torchvision is not installed.

Their video half needs torchvision, their image half does not, and transformers loads both or
neither. Here the video half is replaced by an object that says what is missing when it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn
from unittest import mock

from transformers import ProcessorMixin
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import PushToHubMixin, is_torchvision_available


class NoVideos(PushToHubMixin):
    """Stands where a processor keeps its video half."""

    def to_dict(self) -> dict[str, Any]:
        """Nothing: transformers writes processors with all their parts into its log."""
        return {}

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            ValueError: Always.
        """
        raise ValueError("videos need torchvision, which is not installed: give images")


@contextlib.contextmanager
def images_suffice() -> Iterator[None]:
    """Within the context, processors load without torchvision; where it is installed, as ever.

    Yields:
        Nothing.
    """
    if is_torchvision_available():
        yield
        return
    check = ProcessorMixin.check_argument_for_proper_class

    def checked(self: ProcessorMixin, name: str, argument: object) -> object:
        # Without torchvision the class to compare with does not exist.
        return NoVideos if isinstance(argument, NoVideos) else check(self, name, argument)

    with (
        mock.patch.object(AutoVideoProcessor, "from_pretrained", lambda *_a, **_k: NoVideos()),
        mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", checked),
    ):
        yield
