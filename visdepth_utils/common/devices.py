"""Which devices there are, asked without loading torch as long as nobody names one."""

import re

SEEDS = 2**32
"""Seeds are below it: numpy and torch take no larger one everywhere."""

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_device(device: str) -> None:
    """Make sure, else ValueError, that a device (``auto`` or as torch calls it) is there."""
    if not _DEVICE.fullmatch(str(device)):
        raise ValueError(f"unknown device {device!r}: choose auto, cpu, cuda, cuda:N or mps")
    kind, _, number = str(device).partition(":")
    if kind in ("auto", "cpu"):
        return
    import torch

    lacks = {
        "cuda": not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count(),
        "mps": not torch.backends.mps.is_available(),
    }
    if lacks.get(kind):
        raise ValueError(f"device {device!r} is not there on this machine: use device auto or cpu")
