"""Damaged claims.json and provenance.json, which every command that shows a run reads."""

import json

from tests.bad_input.box import VERDICT, Case

AGAIN = "delete it and run again"
ONE = "{box}/bad/claims.json is not readable (%s"
FACTS = "{box}/bad/provenance.json is not readable (%s"


def _claims(name: str, content: object, names: str, command: str = "report") -> Case:
    """A claims.json with this content, read by a command."""
    if command == "compare":
        return Case(name, lambda b: ["compare", b.done, b.run(content)], ONE % names, AGAIN)
    return Case(name, lambda b: [command, b.run(content)], ONE % names, AGAIN)


CLAIMS = (
    _claims("half", '[{"claim": "C', "Unterminated string", "verdicts"),
    _claims("empty", "", "Expecting value", "verdicts"),
    _claims("not UTF-8", b'[{"claim": "caf\xe9"}]', "'utf-8' codec", "verdicts"),
    _claims("no list", '{"claim": "C1"}', "it holds no list", "verdicts"),
    _claims("numbers", "[1]", "entry 1 is no object", "verdicts"),
    _claims("lists", '[["claim", "model", "verdict"]]', "entry 1 is no object"),
    _claims("deep", "[" * 100_000, "it is nested too deeply", "verdicts"),
    _claims("long number", "[" + "9" * 5000 + "]", "Exceeds the limit", "verdicts"),
    _claims("no verdict", json.dumps([{"claim": "C1", "model": "m"}]), "entry 1 lacks verdict"),
    _claims("unknown verdict", {"verdict": "maybe"}, "entry 1 has the verdict 'maybe'"),
    _claims("second entry", json.dumps([VERDICT, 1]), "entry 2 is no object", "record"),
    _claims("claim", {"claim": 5}, "claim of entry 1 is not text", "compare"),
    _claims("no model", {"model": ""}, "model of entry 1 is not text", "compare"),
    _claims("model", {"model": ["a"]}, "model of entry 1 is not text", "compare"),
    _claims("effect", {"effect": "big"}, "effect of entry 1 is not a number", "compare"),
    _claims("NaN", {"effect": float("nan")}, "it holds NaN", "compare"),
    _claims("infinite", json.dumps([VERDICT]).replace("0.05", "1e999"), "control_effect of entry"),
    _claims("bounds", {"ci": [1, 2, 3]}, "ci of entry 1 is not two numbers", "record"),
    _claims("bounds as text", {"ci": ["a", "b"]}, "ci of entry 1 is not two numbers", "compare"),
    _claims("details", {"details": "x"}, "details of entry 1 is not a list of objects"),
    _claims("controls", {"controls": [1]}, "controls of entry 1 is not a list of objects"),
    _claims("thresholds", {"thresholds": [1]}, "thresholds of entry 1 is not an object"),
)
PROVENANCE = tuple(
    Case(name, lambda b, text=text: ["compare", b.done, b.run(None, text)], FACTS % names, AGAIN)
    for name, text, names in (
        ("half", '{"model"', "Expecting ':' delimiter"),
        ("a list", "[]", "it holds no object"),
        ("pairs", "[[1, 2]]", "it holds no object"),
        ("notebooks", '{"notebooks": [1]}', "its notebooks is no object"),
        ("a notebook", '{"notebooks": {"00_a": 1}}', "what it says of notebook '00_a' is no"),
        ("model", '{"model": "m"}', "its model is no object"),
        ("infinity", '{"updated": Infinity}', "it holds Infinity"),
    )
)
BESIDE = (
    Case(
        "explorer",
        lambda b: ["report", b.run() and b.file("bad/explorer/a.json", "[{}]").parent.parent],
        "{box}/bad/explorer/a.json is not readable",
        AGAIN,
    ),
    Case(
        "executed notebook",
        lambda b: ["report", b.run() and b.file("bad/notebooks/00_a.ipynb", "{").parent.parent],
        "{box}/bad/notebooks/00_a.ipynb is not readable",
        "restore it, or take it away",
    ),
)
