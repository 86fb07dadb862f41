"""A run as a research object: ro-crate-metadata.json, so that its folder can be deposited as it is.

Profile: RO-Crate 1.2 (https://w3id.org/ro/crate/1.2), written by the library ``rocrate``.
"""

import json
import mimetypes
from datetime import datetime
from pathlib import Path

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from visdepth_utils.common.files import write_text
from visdepth_utils.runs.records import read_claims, read_provenance

CRATE = "ro-crate-metadata.json"
PAPER = "https://arxiv.org/abs/2604.09425"
_FILES = (
    *("claims.json", "provenance.json", "curves.csv", "report.html", "notebooks/*.ipynb"),
    *("figures/*.png", "tables/*.parquet", "selection/*.json", "summaries/*.csv"),
)


def write_crate(folder: Path) -> Path:
    """Describe a run's folder by what its provenance already says; nothing is copied.

    Equal runs give equal files. ValueError if claims.json or provenance.json is damaged.
    """
    facts, claims = read_provenance(folder), read_claims(folder)
    model, data, code = (facts.get(part) or {} for part in ("model", "data", "code"))
    crate = ROCrate(gen_preview=False)
    crate.name = f"Claims of {PAPER} on {model.get('name', 'a model')}"
    found = ", ".join(f"{entry['claim']}: {entry['verdict']}" for entry in claims)
    crate.description = f"Verdicts of visdepth. {found or 'No claim was judged.'}"
    if "updated" in facts:
        crate.datePublished = datetime.fromisoformat(facts["updated"])
    software = {"@type": "SoftwareApplication", "name": "visdepth-utils"}
    software["version"] = str((facts.get("versions") or {}).get("visdepth-utils", "unknown"))
    software["identifier"] = str(code.get("git_commit") or code.get("measuring", "unknown"))
    weights = {"@type": "SoftwareSourceCode", "name": str(model.get("name", "unknown"))}
    weights["identifier"] = str(model.get("weights_hash", "unknown"))
    source = {"@type": "Dataset", "name": str(data.get("source", "unknown"))}
    source["identifier"] = str(data.get("hash", "unknown"))
    named = {"#visdepth": software, "#model": weights, "#data": source}
    entities = [crate.add(ContextEntity(crate, key, value)) for key, value in named.items()]
    files = [file for pattern in _FILES for file in sorted(folder.glob(pattern))]
    made = [
        crate.add_file(
            str(file),
            dest_path=file.relative_to(folder).as_posix(),
            properties={
                "encodingFormat": mimetypes.guess_type(file)[0] or "application/octet-stream"
            },
        )
        for file in files
    ]
    action = {"@type": "CreateAction", "name": "make reproduce"}
    action |= {"endTime": facts["updated"]} if "updated" in facts else {}
    run = crate.add(ContextEntity(crate, "#run", action))
    run["instrument"], run["object"], run["result"] = entities[0], entities[1:], made
    crate.root_dataset["mentions"] = [run]
    crate.root_dataset["citation"] = {"@id": PAPER}
    text = json.dumps(crate.metadata.generate(), indent=2, sort_keys=True)
    write_text(folder / CRATE, text + "\n")
    return folder / CRATE
