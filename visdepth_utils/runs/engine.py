"""Which engine measures: this process, or a Ray cluster.

The engine changes who computes a shard, never what: shards, functions and cache are the same. It is
chosen by the environment, ``VISDEPTH_ENGINE=ray``, so that notebooks keep their eight parameters,
and ``VISDEPTH_RAY='{"num_actors": 2}'`` holds its options.
"""

import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd

from visdepth_utils.common.progress import Progress

ENGINES = ("local", "ray")
PROBE_S = 5.0
"""Seconds in which a Ray must answer at its address; Ray itself would try for many minutes."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4
"""What opens a connection of HTTP/2, as Ray's server speaks, and the kind of frame it answers."""
Shard = tuple[int, list[Any]]
"""Index of its first sample, and its samples."""
Measure = Callable[[list[Any], Progress], pd.DataFrame]


@dataclass(frozen=True)
class RayOptions:
    """What a worker is and how many there are.

    ``num_actors``: workers of one notebook; None for as many as the cluster has room for.
    ``num_cpus`` of each worker, which is also its number of threads. ``num_gpus`` of each worker;
    more than 1 for a model that spreads over several (it needs ``device_map`` in ``load_vlm``);
    None for 1 where the cluster has GPUs and this process sees one too, else 0. ``wait_s``: seconds
    to wait for room on the cluster before giving up.
    """

    num_actors: int | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    wait_s: float = 600


def chosen_engine() -> str:
    """The engine that the environment asks for, ``local`` if it asks for none.

    ValueError for an unknown one, or Ray where it is not installed.
    """
    name = os.environ.get("VISDEPTH_ENGINE") or "local"
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r} (VISDEPTH_ENGINE): use {' or '.join(ENGINES)}")
    if name == "ray":
        ray_options()
        # Imported in a notebook, Ray advises to install widgets; we show plain lines.
        logging.getLogger("ray.widgets").setLevel(logging.ERROR)
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ValueError(
                "engine 'ray' needs Ray, which is not installed: pip install -c constraints.txt "
                "-e '.[ray]'"
            ) from None
    return name


def ray_options() -> RayOptions:
    """The options that VISDEPTH_RAY gives, the rest by default; ValueError says what is wrong."""
    text = os.environ.get("VISDEPTH_RAY") or "{}"
    known = [field.name for field in fields(RayOptions)]
    mend = f'give JSON like {{"num_actors": 2, "num_gpus": 1}} with {", ".join(known)}'
    try:
        given = json.loads(text)
    except ValueError:
        raise ValueError(f"VISDEPTH_RAY={text!r} is no JSON: {mend}") from None
    if not isinstance(given, dict) or (unknown := sorted(set(given) - set(known))):
        what = f"unknown option {unknown[0]!r} in " if isinstance(given, dict) else ""
        raise ValueError(f"{what}VISDEPTH_RAY={text!r}: {mend}")
    for name, value in given.items():
        least, kinds, number = 0, int | float, "a number"
        if name == "num_actors":
            least, kinds, number = 1, int, "a whole number"
        if value is None and name in ("num_actors", "num_gpus"):
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
            raise ValueError(f"VISDEPTH_RAY: {name}={value!r} must be {number} of at least {least}")
    return RayOptions(**given)


def ray_address() -> str | None:
    """The Ray that RAY_ADDRESS names: ``HOST:PORT``, or ``auto``; None for a Ray of our own.

    ValueError if it is no such address, or nothing answers there as Ray's server does.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return None
    if address == "auto":
        return address
    if address.startswith("ray://"):
        raise ValueError(
            f"RAY_ADDRESS={address!r} is a client address: run this on a node of the cluster and "
            "give HOST:6379"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"RAY_ADDRESS={address!r} is no address: give HOST:6379")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S) as there:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
                there.sendall(_HELLO)
                answer = there.recv(9)
                if len(answer) < 4 or answer[3] != _SETTINGS:
                    raise ValueError(no_ray(address, "what answers there is no Ray"))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(no_ray(address, why)) from error
    return address


def no_ray(address: str, why: str) -> str:
    """What is said where there is no Ray at ``address``, and how to mend it."""
    return (
        f"no Ray at RAY_ADDRESS={address!r} ({why}): start it with ray start --head, or unset "
        "RAY_ADDRESS for a local one"
    )


def facts() -> dict[str, Any]:
    """The engine and its options, for provenance."""
    name = chosen_engine()
    return {"name": name, **(asdict(ray_options()) if name == "ray" else {})}
