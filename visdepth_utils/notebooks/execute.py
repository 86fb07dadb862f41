"""Execute one notebook without a browser: live output, one-line errors, atomic result."""

import base64
import contextlib
import io
import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from visdepth_utils.common.cells import read_notebook
from visdepth_utils.common.files import write_text
from visdepth_utils.notebooks.schedule import threads
from visdepth_utils.notebooks.streams import Shown, plain

KERNEL = "python3"
# The kernel talks to this process on this machine only; its advice on encryption is noise here.
# So is its error about the interrupt by which a kernel is told to end, when that comes a moment
# early. What happens in a cell does not come by this log. DEBUG=1 shows it.
_KERNEL_ARGUMENTS = ["--log-level=" + ("WARN" if os.environ.get("DEBUG") else "CRITICAL")]
_TOOK = re.compile(r"(\*\*Time and memory:\*\* ).*?( when its outputs were stored)")


@dataclass(frozen=True)
class Outcome:
    """How the execution of a notebook ended: seconds, error in one line, traceback."""

    seconds: float
    error: str | None = None
    details: str = ""

    @property
    def lacks_data(self) -> str:
        """What the data lacks, if the notebook ended because of it (``tasks.MissingTask``)."""
        name, _, message = (self.error or "").partition(": ")
        return message if name == "MissingTask" else ""


def use_own_kernel() -> None:
    """Make ``python3`` mean the interpreter that runs this, whatever kernels the user has.

    FileNotFoundError if this environment has no such kernel.
    """
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # Figures belong into the notebook even where the caller asked for a backend without display.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The kernel's debugger warns about frozen modules on stderr, that is, in the notebook.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    # We show plain lines and no widgets: tqdm's advice to install them must not reach a notebook.
    quiet = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found")))
    os.environ["PYTHONWARNINGS"] = quiet
    first = ""
    with contextlib.suppress(NoSuchKernel):
        first = KernelSpecManager().get_kernel_spec(KERNEL).argv[0]
    # jupyter_client puts sys.executable where a specification just says "python".
    own = Path(first).resolve() == Path(sys.executable).resolve()
    if first not in ("python", "python3") and not own:
        raise FileNotFoundError(
            f"no Jupyter kernel {KERNEL!r} in {sys.prefix}: python -m pip install ipykernel"
        )


def execute(
    source: Path, target: Path, parameters: dict[str, Any], cwd: Path, shown: Shown
) -> Outcome:
    """Run a notebook with parameters and keep the executed copy, also of one that broke.

    Args:
        source: The notebook; left unchanged.
        target: The executed copy, saved after each cell.
        parameters: Literals, injected after the ``parameters`` cell.
        cwd: Working directory of the kernel.
        shown: Where its output goes while it runs.

    Returns:
        Time and error: what the notebook raises is returned here; KeyboardInterrupt is raised.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("papermill").addFilter(_told_by_us)
    start = time.monotonic()
    error, details = None, ""
    try:
        papermill.execute_notebook(
            _literal(source),
            _literal(target),
            parameters=parameters,
            kernel_name=KERNEL,
            language="python",
            progress_bar=False,
            stdout_file=shown,
            stderr_file=shown,
            cwd=str(cwd),
            coalesce_streams=True,
            extra_arguments=_KERNEL_ARGUMENTS,
        )
    except PapermillExecutionError as problem:
        error = _one_line(problem.ename, problem.evalue)
        details = "\n".join(problem.traceback)
    except OSError as problem:  # the executed copy could not be saved
        if problem.errno is None:
            raise
        error = _one_line(type(problem).__name__, str(problem))
    except RuntimeError as problem:  # a DeadKernelError, or the like from one that just starts
        if "Kernel died" not in str(problem):
            raise
        error = "DeadKernelError: the kernel died, most likely out of memory: use a smaller N="
    finally:
        shown.end()
        shown.flush()
    return Outcome(time.monotonic() - start, error, details)


def refresh(path: Path) -> Outcome:
    """Run a notebook as it is, and store its outputs in place, ready to be committed.

    It is left unchanged if a cell raises or prints on stderr. ValueError if it is no notebook.
    """
    notebook = read_notebook(path)
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL,
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=_KERNEL_ARGUMENTS,
        resources={"metadata": {"path": str(path.parent)}},
    )
    start = time.monotonic()
    try:
        client.execute()
    except CellExecutionError as problem:
        error, seconds = _one_line(problem.ename, problem.evalue), time.monotonic() - start
        return Outcome(seconds, error, problem.traceback)
    seconds = time.monotonic() - start
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if output.get("name") == "stderr":
            return Outcome(seconds, _one_line("printed on stderr", output["text"]), output["text"])
        if "image/png" in output.get("data", {}):
            output["data"]["image/png"] = _smaller(output["data"]["image/png"])
    # What depends on the machine but not on the notebook would make every refresh a change.
    notebook.metadata.pop("widgets", None)
    kernel = {"display_name": "Python 3", "language": "python", "name": KERNEL}
    notebook.metadata |= {"kernelspec": kernel, "language_info": {"name": "python"}}
    tell_time(notebook, seconds, threads())
    write_text(path, nbformat.writes(notebook) + "\n")
    return Outcome(seconds)


def tell_time(notebook: nbformat.NotebookNode, seconds: float, n_threads: int) -> None:
    """Write how long a notebook took where its text says so, and into its metadata."""
    halves = round(seconds / 30)
    some = {0: "seconds", 1: "half a minute", 2: "a minute"}
    cores = f"{n_threads} CPU core" + "s" * (n_threads > 1)
    took = f"{some.get(halves, f'{halves / 2:g} minutes')} on {cores}"
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and _TOOK.search(cell.source):
            cell.source = _TOOK.sub(rf"\g<1>{took}\g<2>", cell.source)
            notebook.metadata["took"] = took


def _told_by_us(record: logging.LogRecord) -> bool:
    """Papermill logs that a kernel died: said in ``Outcome``, or meant, where a run is stopped."""
    return "Kernel died" not in record.getMessage()


def _literal(path: Path) -> str:
    """A path as papermill takes it: it would fill in {fields} with parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _smaller(png: str) -> str:
    """A stored picture in 256 colours: a third of the bytes, and nobody sees the difference."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _one_line(name: str, message: str) -> str:
    """The first line of an error, without colours."""
    lines = plain(message).strip().splitlines()
    return f"{name}: {lines[0][:300]}" if lines else name
