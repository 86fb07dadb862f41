"""Command line: ``python -m visdepth_utils COMMAND``."""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

from visdepth_utils.common.files import WriteError
from visdepth_utils.notebooks.streams import say

_NO_TEXT = re.compile("[\ud800-\udfff]")  # a byte that could not be decoded


def main(argv: list[str] | None = None, dispatch: Callable[[list[str]], int] | None = None) -> int:
    """Run a command; errors of the user's making are one line on stderr.

    ``argv`` None: the command line's. ``dispatch`` parses them and does what they say; None for the
    commands of this package. Exit status: 0 well, 1 a notebook broke or a dry run does not fit, 2
    wrong input, 130 interrupted. DEBUG=1 in the environment shows tracebacks instead of single
    lines.
    """
    if argv is None:
        argv = sys.argv[1:]
        _use_utf8(argv)
    try:
        for given in argv:
            if _NO_TEXT.search(given):
                what = f"argument {given!r} is not in the encoding of the locale"
                raise ValueError(f"{what}: mend it")
        return (dispatch or _dispatch)(argv)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, run it again to go on", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, WriteError) as error:
        # Ours say in one line what is wrong and how to mend it; anyone else's is a bug to be seen.
        if os.environ.get("DEBUG") or not _is_ours(error.__traceback__):
            raise
        say(sys.stderr, f"error: {error}")
        return 2


def _use_utf8(argv: list[str]) -> None:
    """Start again in UTF-8 where the locale knows only ASCII: what a run writes may hold any name.

    Where it knows more, characters that it lacks are spelt out.
    """
    if sys.getfilesystemencoding() == "ascii":
        os.environ["PYTHONUTF8"] = "1"  # for the kernels too
        os.execv(sys.executable, [sys.executable, "-X", "utf8", "-m", "visdepth_utils", *argv])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(argv: list[str]) -> int:
    """Parse and call.

    Heavy modules are imported here and not above, so that Ctrl-C ends in one line from the start.
    """
    parser = _parser()
    if not argv:
        parser.print_help()
        return 0
    options = parser.parse_args(argv)
    if options.command == "reproduce":
        if options.ray and (options.engine or os.environ.get("VISDEPTH_ENGINE")) != "ray":
            raise ValueError(f"--ray {options.ray!r} has no effect without --engine ray: add it")
        # By the environment, so that the notebooks' kernels know it too.
        for variable, value in (("ENGINE", options.engine), ("RAY", options.ray)):
            if value is not None:
                os.environ[f"VISDEPTH_{variable}"] = value
        from visdepth_utils.runs.settings import DEFAULTS, check_early

        given = {name: value for name in DEFAULTS if (value := getattr(options, name)) is not None}
        check_early(given, options.out, options.jobs)  # in a second, before torch is imported
        from visdepth_utils.notebooks.reproduce import reproduce

        chosen = {"jobs": options.jobs, "dry": options.dry}
        return reproduce(given, options.out, options.notebooks, **chosen)
    if options.command == "cache":
        from visdepth_utils.runs.cache import show_cache

        say(sys.stdout, show_cache(options.run, options.prune))
        return 0
    if options.command in ("verdicts", "report", "compare", "record"):
        return _on_runs(options)
    if options.command == "random-init":
        from visdepth_utils.models.untrained import save_untrained

        say(sys.stdout, f"saved {save_untrained(options.model, options.folder)}")
        return 0
    from visdepth_utils.common.files import REPO
    from visdepth_utils.notebooks.reproduce import refresh_all

    return refresh_all(options.paths or sorted((REPO / "notebooks").glob("*.ipynb")))


def _on_runs(options: argparse.Namespace) -> int:
    """Commands on finished runs: they show or compare, and measure nothing."""
    from visdepth_utils.runs.settings import existing_run

    folders = [existing_run(name) for name in options.runs]
    if options.command == "verdicts":
        from visdepth_utils.report.verdict_table import verdict_text

        say(sys.stdout, verdict_text(*folders))
    elif options.command == "report":
        from visdepth_utils.report.page import notebooks_of, write_report

        say(sys.stdout, str(write_report(*folders, notebooks_of(*folders))))
    elif options.command == "compare":
        from visdepth_utils.report.compare import comparison_text

        say(sys.stdout, comparison_text(*folders))
    else:
        from visdepth_utils.runs.records import record

        say(sys.stdout, f"kept in data/runs/{record(*folders).name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    from visdepth_utils.common.errors import Parser
    from visdepth_utils.common.files import REPO
    from visdepth_utils.runs.settings import DTYPES, PROFILES

    parser = Parser(
        prog=_called(), description="What image tokens do inside a vision language model's decoder."
    )
    parser.add_argument("--version", action="version", version=f"visdepth {_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    what = "run all notebooks on one model, print the verdicts"
    run = commands.add_parser("reproduce", help=what)
    run.add_argument("--model", help="checkpoint folder or hub id (default data/minivlm/base)")
    run.add_argument("--source", help="data other than the embedded worlds")
    run.add_argument("--n", dest="n_samples", type=int, metavar="N", help="samples per task")
    run.add_argument("--seed", type=int, help="of every draw")
    run.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps")
    run.add_argument("--dtype", help=", ".join(DTYPES))
    run.add_argument("--profile", help=" or ".join(PROFILES))
    run.add_argument("--out", help="results folder (default results/MODEL-PROFILE)")
    books = REPO / "notebooks"
    run.add_argument("--notebooks", type=Path, default=books, help="folder of notebooks")
    run.add_argument("--jobs", type=int, help="notebooks at a time (default: by model and cores)")
    run.add_argument("--dry", action="store_true", help="measure a pilot, say what it takes")
    run.add_argument("--engine", help="local (default) or ray")
    run.add_argument("--ray", metavar="JSON", help='e.g. \'{"num_actors": 2, "num_gpus": 1}\'')
    kept = commands.add_parser("cache", help="what the step cache holds, and what is outdated")
    kept.add_argument("run", nargs="?", help="a run's folder or name (default: all of results/)")
    kept.add_argument("--prune", action="store_true", help="delete what is outdated")
    for name, count, text in (
        ("verdicts", 1, "print the verdict table of a finished run"),
        ("report", 1, "write report.html of a run again, from what the run has"),
        ("compare", 2, "which verdicts and numbers of two runs differ, and whether beyond noise"),
        ("record", 1, "keep the verdicts of a run in data/runs/"),
    ):
        known = commands.add_parser(name, help=text)
        known.add_argument("runs", nargs=count, metavar="RUN", help="folder, or name in results/")
    twin = commands.add_parser("random-init", help="save an untrained twin of a checkpoint")
    twin.add_argument("model", help="checkpoint folder")
    twin.add_argument("folder", nargs="?", help="default results/models/MODEL-random-init")
    fresh = commands.add_parser("notebooks", help="run notebooks as they are, outputs in place")
    fresh.add_argument("paths", nargs="*", type=Path, help="default: all of notebooks/")
    return parser


def _called() -> str:
    """How this was started, so that what a message says to call can be called."""
    if Path(sys.argv[0]).name == "visdepth":
        return "visdepth"
    here, python = Path.cwd(), Path(sys.executable)
    shown = python.relative_to(here) if python.is_relative_to(here) else python
    return f"{shown} -m visdepth_utils"


def _version() -> str:
    """Of the installed package."""
    try:
        return version("visdepth-utils")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


def _is_ours(trace: TracebackType | None) -> bool:
    """Whether the innermost frame, where the error was raised, is code of this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    root, file = Path(__file__).resolve().parents[1], Path(trace.tb_frame.f_code.co_filename)
    return any(file.is_relative_to(root / name) for name in ("visdepth_utils", "tools", "training"))


if __name__ == "__main__":
    raise SystemExit(main())
