"""A checkpoint of every family in hub format, loaded from its folder: what can be measured."""

import re
from pathlib import Path

import pytest
import transformers

from tests.families.checkpoints import CHECKPOINTS
from tests.families.findings import CHECKS, EXACT, REFUSED, finding
from tests.families.status import PAGE, page

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_family_is_measured_exactly_or_refused_by_name(name: str, check: str) -> None:
    found = finding(name, check)
    assert found.outcome in (EXACT, REFUSED)
    assert found.outcome == EXACT or found.note


def test_the_committed_table_is_what_was_found() -> None:
    committed = PAGE.read_text(encoding="utf-8")
    version = re.search(r"transformers (\d[\w.]*);", committed)[1]
    pinned = re.search(r"^transformers==(.*)$", CONSTRAINTS.read_text(), re.M)[1]
    assert version == pinned, "run: python -m tests.families.status"
    now = page().replace(f"transformers {transformers.__version__};", f"transformers {version};")
    assert committed == now, "run: python -m tests.families.status"
