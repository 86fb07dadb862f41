"""Command line of the chores: ``python -m tools COMMAND``."""

import sys
from pathlib import Path

from visdepth_utils import __main__ as command
from visdepth_utils.common.errors import Parser
from visdepth_utils.common.files import write_text
from visdepth_utils.notebooks.streams import say
from visdepth_utils.runs.settings import PROFILES, existing_run


def main(argv: list[str] | None = None) -> int:
    """Run a chore; errors of the user's making are one line on stderr.

    Args:
        argv: Arguments, None for the command line's.

    Returns:
        Exit status, as of ``python -m visdepth_utils``.
    """
    return command.main(argv, _dispatch)


def _dispatch(argv: list[str]) -> int:
    """Parse and call."""
    if argv[:1] == ["eval-minivlm"]:  # it has options of its own
        from training.minivlm import evaluate

        return evaluate.main(argv[1:])
    parser = Parser(prog="python -m tools", description="Chores of this repository.")
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("readme", help="write a run's verdicts and figure into README.md")
    page.add_argument("run", help="folder, or name in results/")
    place = commands.add_parser(
        "address", help="write the repository's address into notebooks and CITATION.cff"
    )
    place.add_argument("url", nargs="?", help="a new one, e.g. of a fork (default: as it is)")
    rules = commands.add_parser("register", help="write down which rules are in force")
    rules.add_argument("note", help="what the registration is for")
    training = commands.add_parser("adapters", help="train the adapters of C6 for data/adapters")
    training.add_argument("model", help="folder of an embedded model")
    training.add_argument("--steps", type=int, help="budget (default: the first in claims.yaml)")
    sizes = commands.add_parser("power", help="how many images a claim needs on a run's model")
    sizes.add_argument("claim", help="C7")
    sizes.add_argument("run", help="folder, or name in results/")
    sizes.add_argument("--model", help="instead of the run: the model of results/MODEL-quick")
    spent = commands.add_parser("costs", help="record what each notebook costs, in answers")
    spent.add_argument("model", nargs="?", default="data/minivlm/base", help="its folder")
    spent.add_argument("--profile", default="quick", choices=PROFILES)
    spent.add_argument("--only", nargs="*", default=[""], help="numbers of notebooks")
    spent.add_argument("--compare", action="store_true", help="expected and taken; writes nothing")
    spent.add_argument("--n", type=int, help="with --compare: samples")
    commands.add_parser("eval-minivlm", help="accuracy of the embedded models, per task")
    options = parser.parse_args(argv)
    if options.command == "readme":
        from tools.readme import update_readme

        lines = [str(file) for file in update_readme(existing_run(options.run))]
    elif options.command == "adapters":
        from tools.adapters import train_adapters

        lines = [str(folder) for folder in train_adapters(options.model, options.steps)]
    elif options.command == "power":
        from tools.power import power

        name = f"{Path(options.model).name}-quick" if options.model else options.run
        lines = power(existing_run(name), options.claim)
    elif options.command == "costs":
        from tools.costs import compare, record

        asked = (options.model, options.profile, tuple(options.only))
        lines = [compare(*asked, options.n).to_string() if options.compare else str(record(*asked))]
    elif options.command == "register":
        from tools.register import DEVIATIONS, deviations, register

        entry = register(options.note)
        write_text(DEVIATIONS, deviations())
        lines = [f"registration {entry['number']} of {entry['date']}: {entry['note']}"]
    else:
        from tools.address import repository, spread_address

        changed = spread_address(options.url)
        lines = [f"{repository()}: {len(changed)} files changed"]
    say(sys.stdout, "\n".join(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
