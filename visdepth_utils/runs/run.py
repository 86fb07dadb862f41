"""A run: one model, one set of settings, one folder of tables, figures, verdicts and provenance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from visdepth_utils.common.files import atomic, locked, write_text
from visdepth_utils.common.progress import Progress, progress_line
from visdepth_utils.data.records import locate_source
from visdepth_utils.models.prompts import TEMPLATE_DATE
from visdepth_utils.runs import cache, engine, executor, identity, measuring_code, provenance
from visdepth_utils.runs.found import show_found, show_opening
from visdepth_utils.runs.outputs import keep_outputs, keep_selection
from visdepth_utils.runs.records import (
    CURVES,
    annotate,
    as_entry,
    edit_claims,
    read_curves,
    read_provenance,
)
from visdepth_utils.runs.registration import in_force
from visdepth_utils.runs.settings import (
    Settings,
    check_injected,
    check_settings,
    chosen,
    resolved_device,
    run_folder,
    shown_source,
)

__all__ = ["Run", "chosen", "open_run", "progress_line"]


def open_run(
    *,
    model: str,
    source: str | None = None,
    n_samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    profile: str = "quick",
    out_dir: str | Path | None = None,
    default_n: int | None = None,
) -> "Run":
    """Open the results folder of a run, creating or continuing it; its provenance is written.

    Args:
        model: Checkpoint folder or hub id.
        source: Data other than the embedded worlds; None or "" for these.
        n_samples: Samples per task; None leaves the choice to the profile.
        seed: Of every draw.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        profile: How much is measured: ``quick`` or ``full``.
        out_dir: See ``run_folder``.
        default_n: What a notebook has for ``n_samples`` unless it is chosen: with it a notebook
            works in the folder of all notebooks at their own numbers, with any other number in the
            folder of that.

    Raises:
        ValueError: For a bad setting, or a folder that holds a run with other settings.
        FileNotFoundError: If the model's folder does not exist.
    """
    check_injected()
    given = {"model": model, "source": source, "n_samples": n_samples, "seed": seed}
    settings = check_settings(**given, device=device, dtype=dtype, profile=profile)
    provenance.model_identity(model)  # raises now, not after the first long step
    measuring_code.code_version()
    named = {**settings, "n_samples": None if n_samples == default_n else n_samples}
    run = Run(run_folder(named, out_dir), settings, default_n)
    if found := run.differences():
        raise ValueError(identity.refusal(run.folder, found))
    run.note()
    return run


@dataclass(frozen=True)
class Run:
    """Results folder, settings (checked) and default number of samples; made by ``open_run``."""

    folder: Path
    settings: Settings
    default_n: int | None = None

    def table(
        self,
        name: str,
        fn: Callable[[], pd.DataFrame],
        key: dict[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ) -> pd.DataFrame:
        """Compute a table by ``fn``, or read it back if the same step was finished before.

        ``key``: what the table depends on besides the settings of the run, the weights, the data
        and the measuring code, which always count. ``name``, ``say`` and errors: see
        ``cache.step``.
        """
        return cache.step(self.folder / "tables", name, fn, self._full_key(key), say)

    def _full_key(self, key: dict[str, Any] | None) -> dict[str, Any]:
        """All that a table of this run depends on, besides the code."""
        model = provenance.model_identity(self.settings["model"])
        return {
            "settings": {**self.settings, "device": self.device},
            "weights": model["weights_hash"],
            "model_files": model.get("files_hash"),
            "revision": model.get("revision"),
            "data": provenance.data_identity(self.settings["source"])["hash"],
            "step": key or {},
        }

    def by_block(
        self,
        name: str,
        samples: Sequence[Any],
        fn: Callable[[list[Any], Progress], pd.DataFrame],
        key: dict[str, Any] | None = None,
        size: int = 16,
    ) -> pd.DataFrame:
        """As ``table``, block of samples by block: a killed run repeats only the block it was in.

        The engine that VISDEPTH_ENGINE names measures the blocks; see ``engine``.

        Args:
            name: Of the step.
            samples: All samples.
            fn: Called with (samples of a block, progress).
            key: As for ``table``. The samples of a block are always in it, and how many others
                there are is not: what ``fn`` uses of others, such as the whole task, must be.
            size: Samples in a block.

        Returns:
            The tables of all blocks, one after the other, in the order of the samples.
        """
        samples, folder = list(samples), self.folder / "tables"
        blocks = {start: samples[start : start + size] for start in range(0, len(samples), size)}
        found: dict[int, pd.DataFrame] = {}

        def key_of(start: int) -> dict[str, Any]:
            block = blocks[start]
            ids, content = [sample.id for sample in block], cache.content_hash(block)
            whole = self._full_key({**(key or {}), "samples": ids, "content": content})
            # Notebooks that take other numbers of samples share the blocks that both have.
            return {**whole, "settings": {**whole["settings"], "n_samples": None}}

        def missing() -> Iterator[engine.Shard]:
            # Looked up one by one: what another run in this folder did meanwhile is not done twice.
            for start, block in blocks.items():
                if (frame := cache.find(folder, name, key_of(start))) is None:
                    yield start, block
                else:
                    found[start] = frame

        measured = []

        def keep(start: int, frame: pd.DataFrame) -> None:
            measured.append(start)
            found[start] = cache.store(folder, name, key_of(start), frame)

        executor.map_shards(name, missing(), fn, keep, progress_line(), len(samples))
        frame = pd.concat([found[start] for start in blocks], ignore_index=True)
        cached = len(blocks) - len(measured)
        how = f"{cached} of {len(blocks)} blocks from cache" if cached else "measured"
        print(f"{name}: {how} ({len(frame)} rows)")
        return frame

    def figure(self, fig: Figure, name: str) -> Figure:
        """Save a figure as PNG and SVG, free of dates so that equal figures are equal files.

        It stays open, and is returned.
        """
        for kind, extra in (("png", {}), ("svg", {"metadata": {"Date": None}})):
            with (
                atomic(self.folder / "figures" / f"{name}.{kind}") as temporary,
                style.context(["default", {"svg.hashsalt": name}]),
            ):
                fig.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", **extra)
        return fig

    def keep(self, *tasks: Any) -> None:
        """Keep which samples of which data were taken, see ``outputs.keep_selection``."""
        for task in tasks:
            annotate(self.folder, selection=keep_selection(self.folder, task))

    def explorer(
        self, table: pd.DataFrame, samples: Sequence[Any], tokens: pd.DataFrame | None = None
    ) -> None:
        """Keep outputs for the explorer of the report; arguments and errors of ``keep_outputs``."""
        keep_outputs(self.folder, table, samples, tokens)

    def summary(self, table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Keep a small table that the report shows beside the figures of its notebook; returns it.

        ``name`` begins with the number of the notebook, as ``"08_"``. The index is kept where it
        has names.
        """
        rows = table if table.index.names == [None] else table.reset_index()
        text = rows.to_csv(index=False, float_format="%.4g", lineterminator="\n")
        write_text(self.folder / "summaries" / f"{name}.csv", text)
        return table

    def keep_curves(self, table: pd.DataFrame) -> pd.DataFrame:
        """Keep curves by depth in ``curves.csv``, where other models are compared with this one.

        Columns of ``plots.curves.COLUMNS``; rows of the same measures are replaced. Returns the
        table.
        """
        file = self.folder / CURVES
        with locked(file):
            old = read_curves(self.folder)
            kept = [old[~old["measure"].isin(table["measure"])], table]
            kept = pd.concat([part for part in kept if len(part)] or [table], ignore_index=True)
            write_text(file, kept.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
        return table

    def record(self, verdict: Any) -> None:
        """Merge a verdict into claims.json; the one of the same claim and model is replaced.

        ``verdict``: a ``Verdict``, or a dictionary with the same entries; ValueError if claim,
        model or a known verdict is missing.
        """
        source = shown_source(self.settings["source"])
        entry = {**as_entry(verdict), "source": source, "rules": in_force()}
        filed = (entry["claim"], entry["model"])
        edit_claims(self.folder, lambda old: (old["claim"], old["model"]) != filed, entry)
        self.note()
        show_found(entry["claim"], self.folder, self.settings_table(), update=True)

    def opening(self, kind: str) -> None:
        """Show the top of a notebook: its diagram, and what was found; ``record`` renews that.

        ``kind``: a claim, or "start" for the notebook without one, which shows the settings.
        """
        show_opening(kind, self.folder, self.settings_table())

    def withdraw(self, notebook: str) -> None:
        """Take back this model's verdicts from a notebook that broke: no old one is shown."""
        # A verdict may name a folder by its last parts: minivlm/base for data/minivlm/base.
        model = "/" + self.settings["model"].rstrip("/")

        def stays(old: dict[str, Any]) -> bool:
            same = model.endswith("/" + old["model"].strip("/"))
            return Path(str(old.get("notebook"))).stem != notebook or not same

        edit_claims(self.folder, stays)

    def differences(self) -> list[identity.Difference]:
        """What of this run differs from the one that the folder holds; nothing in a new folder.

        Raises:
            ValueError: The folder lies within the data: what is written there would become data.
        """
        where = locate_source(self.settings["source"]) if self.settings["source"] else ""
        if isinstance(where, Path) and self.folder.is_relative_to(where.resolve()):
            raise ValueError(
                f"{self.folder} lies in the folder of the data, {where}, where results would "
                "become data: give another folder (OUT=, out_dir in a notebook)"
            )
        held = read_provenance(self.folder)
        return identity.differences(held, self._identity(held))

    def begin_anew(self) -> None:
        """Take back verdicts, figures and outputs of earlier data; tables stay, under their key."""
        edit_claims(self.folder, lambda old: False)
        made = [*(self.folder / "figures").glob("[0-9][0-9]_*.*")]
        for file in [*made, *(self.folder / "explorer").glob("*.json")]:
            file.unlink()
        (self.folder / "provenance.json").unlink(missing_ok=True)

    def note(self) -> None:
        """Bring provenance.json up to date with the settings, the machine and what is installed."""
        annotate(
            self.folder,
            **self._identity(read_provenance(self.folder)),
            seeds={"samples and draws": self.settings["seed"]},
            device=self.device,
            template_date=TEMPLATE_DATE.isoformat(),
            code={"git_commit": provenance.commit(), "measuring": measuring_code.code_version()},
            versions=provenance.versions(),
            machine=provenance.machine(),
            arithmetic=provenance.arithmetic(),
            engine=engine.facts(),
        )

    def _identity(self, held: dict[str, Any]) -> dict[str, Any]:
        """What the run is one of; N is None where each notebook takes its own number."""
        n = self.settings["n_samples"]
        if n == self.default_n and (held.get("settings") or {}).get("n_samples") != n:
            n = None
        return {
            "settings": {**self.settings, "n_samples": n},
            "dtype": identity.dtype_of(self.settings, self.device),
            "model": provenance.model_identity(self.settings["model"]),
            "data": provenance.data_identity(self.settings["source"]),
        }

    @property
    def device(self) -> str:
        """The device that ``auto`` stands for here."""
        return resolved_device(self.settings["device"])

    def settings_table(self) -> pd.DataFrame:
        """The settings and the versions of what ran, to show at the top of a notebook."""
        versions = provenance.versions()
        shown = ("python", "torch", "transformers")
        rows = {k: "default" if value is None else value for k, value in self.settings.items()}
        rows |= {"device": self.device, "run": self.folder.name}
        rows |= {name: versions[name] for name in shown if name in versions}
        frame = pd.DataFrame({"value": [str(value) for value in rows.values()]}, index=list(rows))
        return frame.rename_axis("setting")
