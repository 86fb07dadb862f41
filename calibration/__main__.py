"""``python -m calibration``: simulate, and write docs/calibration.md."""

import argparse

from calibration.measure import faults, markdown, measure
from visdepth_utils.common.files import REPO, write_text

PAGE = REPO / "docs" / "calibration.md"


def main() -> int:
    """Write the page; the status is 1 if a rule errs beyond chance."""
    parser = argparse.ArgumentParser(description="Simulate tables with known truth and judge them.")
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    options = parser.parse_args()
    table = measure(workers=options.workers, say=lambda line: print(line, flush=True))
    write_text(PAGE, markdown(table))
    wrong = faults(table)
    print("\n".join(wrong) or f"written: {PAGE.relative_to(REPO)}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
