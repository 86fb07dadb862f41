"""Which rules are in force, and which registration of data/registration.json they belong to."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visdepth_utils.claims.registry import CLAIMS_FILE, load_claims
from visdepth_utils.common.files import REPO
from visdepth_utils.runs.measuring_code import hash_sources

__all__ = ["REGISTER", "in_force", "registered"]

REGISTER = REPO / "data" / "registration.json"
JUDGES = Path(__file__).resolve().parents[1] / "claims"


def in_force() -> dict[str, str]:
    """Hashes of the rules as they are now.

    ``claims``: sha256 of data/claims.yaml; ``judging``: of the sources in ``visdepth_utils/claims``
    by what they mean, so that layout and remarks do not count.
    """
    claims = hashlib.sha256(CLAIMS_FILE.read_bytes()).hexdigest()
    return {"claims": claims, "judging": hash_sources(JUDGES)}


def registered(rules: Mapping[str, str], file: Path = REGISTER) -> str:
    """Under which registration a verdict was judged; ``rules`` are those that its entry holds.

    "registration 2 of 2026-11-27"; where the rules are those of none, how many changes claims.yaml
    lists since the last one.
    """
    entries: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    for entry in reversed(entries):
        if all(entry[name] == rules.get(name) for name in ("claims", "judging")):
            return f"registration {entry['number']} of {entry['date']}"
    last = entries[-1]
    since = sum(
        str(change["date"]) > last["date"]
        for claim in load_claims()["claims"].values()
        for change in claim["changes"]
    )
    return (
        f"rules that are not registered; the last registration is {last['number']} of "
        f"{last['date']}, and claims.yaml lists {since} changes of later days"
    )
