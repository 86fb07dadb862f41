"""``python -m calibration``: simulate, and write docs/calibration.md."""

import argparse

import pandas as pd

from calibration.measure import markdown, measure, read_table, unexplained
from calibration.scenarios import SCENARIOS
from visdepth_utils.common.files import REPO, write_text

PAGE = REPO / "docs" / "calibration.md"


def main() -> int:
    """Write the page; the status is 1 if a rule errs beyond chance and nothing says why."""
    parser = argparse.ArgumentParser(description="Simulate tables with known truth and judge them.")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--claims", nargs="+", help="only these; the page keeps the others' rows")
    options = parser.parse_args()
    asked = [s for s in SCENARIOS if options.claims is None or s.claim in options.claims]
    table = measure(
        scenarios=asked, workers=options.workers, say=lambda line: print(line, flush=True)
    )
    if options.claims:
        kept, _ = read_table(PAGE.read_text(encoding="utf-8"))
        table = pd.concat([kept[~kept["claim"].isin(options.claims)], table])
        table = table.sort_values("claim", kind="stable")
    write_text(PAGE, markdown(table))
    wrong = unexplained(table)
    print("\n".join(wrong) or f"written: {PAGE.relative_to(REPO)}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
