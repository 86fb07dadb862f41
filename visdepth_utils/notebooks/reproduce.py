"""Run all notebooks on one model: live output, nothing done twice, a report at the end."""

import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import nbformat

from visdepth_utils.claims.registry import CLAIMS_FILE, load_claims, not_testable
from visdepth_utils.common.cells import default_parameters, tags
from visdepth_utils.common.files import REPO, run_lock, write_text
from visdepth_utils.common.progress import duration
from visdepth_utils.data.tasks import EMBEDDED, missing_tasks
from visdepth_utils.models.checkpoints import model_name
from visdepth_utils.notebooks import execute, schedule
from visdepth_utils.notebooks.streams import Indented, Shown, Tagged, say
from visdepth_utils.report import page
from visdepth_utils.report.verdict_table import verdict_text
from visdepth_utils.runs import cache, estimate, executor, identity, measuring_code, provenance
from visdepth_utils.runs.crate import write_crate
from visdepth_utils.runs.records import all_verdicts, annotate
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import DEFAULT_MODEL, check_early, resolved_device, run_folder

_STAMP = "visdepth"


def ordered_notebooks(folder: Path) -> list[Path]:
    """The notebooks in a folder, ``00_...ipynb`` first; FileNotFoundError if there is none."""
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise FileNotFoundError(f"no notebook NN_*.ipynb in {folder}: give --notebooks a folder")
    return found


def reproduce(
    chosen: dict[str, Any],
    out: str | Path | None = None,
    notebooks: Path = REPO / "notebooks",
    stream: Any = None,
    jobs: int | None = None,
    dry: bool = False,
) -> int:
    """Execute the notebooks into a results folder, then print the verdicts and write the report.

    A notebook whose source, parameters, code, weights and data did not change since it was finished
    is not run again. One that breaks does not keep the others from running. A claim that is not
    supported breaks nothing, nor do data that lack a task: what needs it is "not testable".

    Args:
        chosen: Settings the user gave; what is missing is left to each notebook's default, except
            the model: ``DEFAULT_MODEL``.
        out: Results folder, relative to the working directory; None: see ``run_folder``.
        notebooks: Folder of the notebooks.
        stream: Where to print; None for stdout.
        jobs: Notebooks at the same time; None: see ``schedule``.
        dry: Run nothing: measure a pilot and print what the run would take.

    Returns:
        0, or 1 if a notebook broke, or if a dry run finds that it does not fit.

    Raises:
        ValueError: Before anything runs: a bad setting, a folder that holds a run with other
            settings, or memory or disk that cannot suffice.
        FileNotFoundError: For a missing model or no notebooks.
    """
    stream = stream or sys.stdout
    chosen = {"model": DEFAULT_MODEL, "profile": "quick", **chosen}
    chosen |= {name: _from_here(chosen[name]) for name in ("model", "source") if name in chosen}
    where = Path(os.path.expanduser(out)).absolute() if out else None
    settings = check_early(chosen, where, jobs)
    sources = [source.absolute() for source in ordered_notebooks(notebooks)]
    for source in sources:
        default_parameters(source)  # a damaged one ends here, not after hours
    execute.use_own_kernel()
    folder = run_folder(settings, where)
    provenance.model_identity(settings["model"])  # a wrong model ends here, not in each notebook
    provenance.data_identity(settings["source"])  # and so do data that are not there
    jobs = schedule.chosen_jobs(jobs, settings["model"], resolved_device(settings["device"]))
    run = Run(folder, settings)
    other = run.differences()
    if [one.name for one in other] not in ([], [identity.CONTENTS]):
        raise ValueError(identity.refusal(folder, other))
    parameters = {**chosen, "out_dir": _portable(folder)}
    lacking = _untestable(run, sources)
    for reason in dict.fromkeys(lacking.values()):
        claims = load_claims()["claims"].items()
        named = (name for name, entry in claims if lacking.get(entry["notebook"]) == reason)
        say(stream, f"not testable: {', '.join(named)}: {reason}")
    if dry:
        todo = [source for source in sources if source.stem not in lacking]
        todo = [source for source in todo if not _is_finished(run, source, parameters)]
        return _dry_run(run, todo, stream)
    estimate.refuse_early(run, sources)
    with run_lock(folder), executor.serving():
        if other:
            say(stream, f"the data in {settings['source']} changed: all of the run is made again")
            run.begin_anew()
        return _run_all(run, sources, parameters, stream, jobs, lacking)


def _dry_run(run: Run, sources: list[Path], stream: Any) -> int:
    """Say what notebooks will take; a refusal leaves no folder, as if it had not been asked for."""
    new = [path for path in (run.folder, *run.folder.parents) if not path.exists()]
    status = 1
    try:
        with run_lock(run.folder):
            status = estimate.dry_run(run, sources, partial(say, stream))
    finally:
        if status and new:
            shutil.rmtree(run.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                for parent in new[1:]:
                    parent.rmdir()
    return status


def _untestable(run: Run, sources: list[Path]) -> dict[str, str]:
    """Notebooks of claims for which the data lack a task, and why: known before anything runs."""
    source = run.settings["source"]
    if source is None:
        return {}
    claims = {claim["notebook"] for claim in load_claims()["claims"].values()}
    names, profile = [file.stem for file in sources if file.stem in claims], run.settings["profile"]
    needs = {name: estimate.recorded(name, profile)["tasks"] for name in names}
    why = missing_tasks((task for task in EMBEDDED if task in set().union(*needs.values())), source)
    first = {name: next((t for t in why if t in tasks), None) for name, tasks in needs.items()}
    return {name: why[task] for name, task in first.items() if task}


def _from_here(name: Any) -> Any:
    """A path given in another folder than the repository's, where the notebooks will run."""
    if not isinstance(name, str) or not name or Path.cwd() == REPO:
        return name
    there = Path(name).expanduser()
    return str(there.absolute()) if there.exists() else name


def _run_all(
    run: Run,
    sources: list[Path],
    parameters: dict[str, Any],
    stream: Any,
    jobs: int,
    lacking: dict[str, str],
) -> int:
    """All notebooks, then verdicts and report; see ``reproduce``."""
    folder, settings = run.folder, run.settings
    beside = f"{jobs} at a time, " if jobs > 1 else ""
    where = f"{beside}results in {_portable(folder)}"
    say(stream, f"{len(sources)} notebooks on {settings['model']}, {where}")
    for name, reason in lacking.items():
        _record_untestable(run, name, reason)
        for ending in (".ipynb", ".html"):  # of other data
            (folder / "notebooks" / f"{name}{ending}").unlink(missing_ok=True)
    start = time.monotonic()
    broken: dict[str, str] = {}
    reused: list[str] = []

    def run_one(number: int, source: Path, several: bool) -> None:
        head = f"[{number}/{len(sources)}] {source.stem}"
        if _is_finished(run, source, parameters):
            reused.append(source.stem)
            say(stream, f"{head}: unchanged since it was finished, not run again")
            return
        say(stream, head)
        shown = Tagged(stream, f"[{number}]    ") if several else Indented(stream)
        outcome = _execute(run, source, parameters, shown)
        spent = duration(outcome.seconds)
        if outcome.lacks_data:
            say(stream, f"{head}: not testable, after {spent}: {outcome.lacks_data}")
        elif outcome.error:
            broken[source.stem] = outcome.error
            annotate(folder, notebooks={source.stem: {"error": outcome.error}})
            _say_end(stream, f"{head}: broke after {spent}: {outcome.error}", outcome)
        else:
            say(stream, f"{head}: done in {spent}")

    works: dict[bool, list[schedule.Work]] = {False: [], True: []}
    for number, source in enumerate(sources, 1):
        if source.stem in lacking:
            continue
        alone = bool(tags(source) & {schedule.ALONE, schedule.READS_VERDICTS})
        works[alone].append(partial(run_one, number, source, jobs > 1 and not alone))
    schedule.run_together(works[False], jobs)
    schedule.run_together(works[True], 1)
    written = page.write_report(folder, [source.stem for source in sources])
    write_crate(folder)
    say(stream, "\n" + verdict_text(folder, broken))
    for name, error in sorted(broken.items()):
        say(stream, f"broken: {name}: {error}")
    ran = len(sources) - len(reused) - len(broken) - len(lacking)
    without = f" {len(lacking)} not testable," if lacking else ""
    spent = duration(time.monotonic() - start)
    say(stream, f"\n{ran} run,{without} {len(reused)} unchanged, {len(broken)} broken, in {spent}")
    say(stream, f"report: {_portable(written)}")
    return 1 if broken else 0


def refresh_all(paths: Iterable[Path], stream: Any = None) -> int:
    """Run notebooks with their default parameters and store the outputs in place.

    1 if one broke (it is left as it was), else 0. FileNotFoundError if a notebook or the kernel is
    missing.
    """
    stream = stream or sys.stdout
    execute.use_own_kernel()
    status = 0
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no notebook {path}: give the path of an .ipynb file")
        outcome = execute.refresh(path)
        status |= bool(outcome.error)
        end = f"broke, left as it was: {outcome.error}" if outcome.error else "outputs stored"
        _say_end(stream, f"{path.stem}: {end} ({duration(outcome.seconds)})", outcome)
    return status


def _say_end(stream: Any, line: str, outcome: execute.Outcome) -> None:
    """How a notebook ended; with DEBUG=1 its traceback too."""
    say(stream, line)
    if outcome.details and os.environ.get("DEBUG"):
        say(stream, outcome.details)


def _execute(run: Run, source: Path, parameters: dict[str, Any], shown: Shown) -> execute.Outcome:
    """Run one notebook; on success stamp it with its inputs, on failure withdraw its verdicts.

    Data without the task that a notebook needs is no failure: its claims are not testable.
    """
    defaults = default_parameters(source)
    unknown = sorted(set(parameters) - set(defaults))
    if unknown:
        names = ", ".join(unknown)
        return execute.Outcome(0.0, f"its cell tagged 'parameters' does not declare {names}")
    target = run.folder / "notebooks" / source.name
    outcome = execute.execute(source, target, parameters, REPO, shown)
    if schedule.stopping():
        raise KeyboardInterrupt
    if outcome.error:
        run.withdraw(source.stem)
        if not outcome.lacks_data:
            return outcome
        _record_untestable(run, source.stem, outcome.lacks_data)
    used = {name: (run.settings | defaults | parameters)[name] for name in run.settings}
    minutes = round(outcome.seconds / 60, 2)
    annotate(run.folder, notebooks={source.stem: {"minutes": minutes, "settings": used}})
    executed = nbformat.read(target, as_version=4)
    # Taken after the run: a model from the hub has its hash only now.
    executed.metadata[_STAMP] = {"inputs": _inputs(run, source, parameters)}
    write_text(target, nbformat.writes(executed) + "\n")
    return outcome


def _record_untestable(run: Run, notebook: str, reason: str) -> None:
    """Verdicts on the claims of a notebook for which the data lack a task."""
    for verdict in not_testable(notebook, reason, model_name(run.settings["model"])):
        run.record(verdict)


def _is_finished(run: Run, source: Path, parameters: dict[str, Any]) -> bool:
    """Whether the executed copy is complete and was made from the very same inputs."""
    target = run.folder / "notebooks" / source.name
    if not (run.folder / "claims.json").exists() or not target.exists():
        return False
    try:
        stamp = nbformat.read(target, as_version=4).metadata.get(_STAMP, {})
    except Exception:  # half a file, whatever is wrong with it, means: run again
        return False
    return stamp.get("inputs") == _inputs(run, source, parameters)


def _inputs(run: Run, source: Path, parameters: dict[str, Any]) -> str:
    """Hash of everything an executed notebook depends on."""
    cells = nbformat.read(source, as_version=4).cells
    parts = {
        "cells": [[cell.cell_type, cell.source] for cell in cells],
        "parameters": parameters,
        "device": run.device,
        "weights": provenance.model_identity(run.settings["model"]),
        "data": provenance.data_identity(run.settings["source"]),
        "code": measuring_code.hash_sources(Path(__file__).resolve().parents[1]),
        "claims": hashlib.sha256(CLAIMS_FILE.read_bytes()).hexdigest(),
        "versions": provenance.versions(),
    }
    if schedule.READS_VERDICTS in tags(source):
        found = all_verdicts(run.folder.parent, like=run.settings).drop(columns=["run", "date"])
        parts["verdicts"] = found[found["claim"] != "C9"].to_csv(index=False)
    return hashlib.sha256(cache.canonical(parts).encode()).hexdigest()


def _portable(path: Path) -> str:
    """Relative to the repository where possible, so that results can be moved with it."""
    return path.relative_to(REPO).as_posix() if path.is_relative_to(REPO) else str(path)
