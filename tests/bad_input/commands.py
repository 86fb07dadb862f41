"""Bad arguments and variables of the environment, and what each must say."""

from tests.bad_input.box import Case

LONG = "a" * 5000
GIVE = "give an existing folder"
MAKE = "make one with make reproduce"
YAML = "!!python/object/apply:os.system ['touch pwned']"

MODELS = (
    Case("empty", lambda b: b.reproduce("--model", ""), "model ''", "give a folder"),
    Case("blank", lambda b: b.reproduce("--model", " "), "model ' '", "give a folder"),
    Case("missing", lambda b: b.reproduce("--model", "data/no"), "'data/no'", GIVE),
    Case("file", lambda b: b.reproduce("--model", b.folder / "file"), "{box}/file", GIVE),
    Case("long", lambda b: b.reproduce("--model", LONG), "'aaaaaaaa", GIVE),
    Case("nul", lambda b: b.reproduce("--model", "a\0b"), r"'a\x00b'", GIVE),
    Case("line feed", lambda b: b.reproduce("--model", "a\nb"), r"'a\nb'", GIVE),
    Case("no user", lambda b: b.reproduce("--model", "~nobody-x/m"), "'~nobody-x/m'", GIVE),
    Case("YAML", lambda b: b.reproduce("--model", YAML), "!!python/object/apply", GIVE),
    Case("braces", lambda b: b.reproduce("--model", "{{7*7}}"), "'{{7*7}}'", GIVE),
    Case("quote", lambda b: b.reproduce("--model", "a'b\"c"), "a\\'b\"c", GIVE),
    Case(
        "no config", lambda b: b.reproduce("--model", b.notebooks), "config.json", "give a folder"
    ),
    Case(
        "pickle only",
        lambda b: b.reproduce(
            "--model", b.spoilt({"model.safetensors": None, "pytorch_model.bin": b"x"})
        ),
        "spoilt' holds no .safetensors weights (pytorch_model.bin)",
        "save it again with model.save_pretrained",
    ),
    Case(
        "no weights",
        lambda b: b.reproduce("--model", b.spoilt({"model.safetensors": None})),
        "spoilt' holds no .safetensors weights (no weights at all)",
        "save it again",
    ),
    Case(
        "adapter beside it",
        lambda b: b.reproduce("--model", b.spoilt({"adapter_config.json": "{}"})),
        "spoilt' holds an adapter",
        "merge it",
    ),
)

SETTINGS = (
    Case("source", lambda b: b.reproduce("--source", "nope"), "'nope'", GIVE),
    Case("source long", lambda b: b.reproduce("--source", LONG), "'aaaa", GIVE),
    Case("source nul", lambda b: b.reproduce("--source", "a\0"), r"'a\x00'", GIVE),
    Case("source user", lambda b: b.reproduce("--source", "~nobody-x/d"), "~nobody-x", GIVE),
    Case("source YAML", lambda b: b.reproduce("--source", YAML), "!!python/object", GIVE),
    Case("source braces", lambda b: b.reproduce("--source", "{{x}}"), "'{{x}}'", GIVE),
    Case(
        "source no parquet",
        lambda b: b.reproduce("--source", b.file("bad.parquet", b"PAR1xx")),
        "bad.parquet is not readable as parquet",
        "write it again",
    ),
    Case("n zero", lambda b: b.reproduce("--n", 0), "n_samples 0", "a whole number of at least 1"),
    Case(
        "n negative",
        lambda b: b.reproduce("--n", -3),
        "n_samples -3",
        "a whole number of at least 1",
    ),
    Case("n half", lambda b: b.reproduce("--n", 2.5), "--n: invalid int value: '2.5'", "--help"),
    Case("n word", lambda b: b.reproduce("--n", "all"), "--n: invalid int value: 'all'", "--help"),
    Case("seed", lambda b: b.reproduce("--seed", -1), "seed -1", "a whole number of at least 0"),
    Case(
        "seed huge",
        lambda b: b.reproduce("--seed", 2**70),
        f"seed {2**70}",
        "a whole number below 4294967296",
    ),
    Case(
        "profile", lambda b: b.reproduce("--profile", "slow"), "'slow'", "choose one of quick, full"
    ),
    Case(
        "dtype",
        lambda b: b.reproduce("--dtype", "int8"),
        "dtype 'int8'",
        "choose one of auto, float32",
    ),
    Case(
        "device", lambda b: b.reproduce("--device", "gpu"), "device 'gpu'", "choose auto, cpu, cuda"
    ),
    Case(
        "no CUDA",
        lambda b: b.reproduce("--device", "cuda:77"),
        "'cuda:77'",
        "use device auto or cpu",
    ),
    Case(
        "no MPS", lambda b: b.reproduce("--device", "mps"), "device 'mps'", "use device auto or cpu"
    ),
    Case("engine", lambda b: b.reproduce("--engine", "dask"), "engine 'dask'", "use local or ray"),
    Case(
        "Ray, no JSON",
        lambda b: b.reproduce("--engine", "ray", "--ray", "{x"),
        "VISDEPTH_RAY='{x'",
        "give JSON like",
    ),
    Case(
        "Ray, unknown option",
        lambda b: b.reproduce("--engine", "ray", "--ray", '{"gpus": 1}'),
        "unknown option 'gpus'",
        "give JSON like",
    ),
    Case(
        "Ray, nothing",
        lambda b: b.reproduce("--engine", "ray", "--ray", '{"num_actors": 0}'),
        "num_actors=0",
        "must be a whole number of at least 1",
    ),
    Case("Ray, unused", lambda b: b.reproduce("--ray", "{}"), "--ray '{}'", "--engine ray: add it"),
    Case("out a file", lambda b: b.reproduce(out="file"), "{box}/file/", "give another folder"),
    Case(
        "out in a file", lambda b: b.reproduce(out="file/x"), "{box}/file/x", "give another folder"
    ),
    Case("out long", lambda b: b.reproduce(out="a" * 300), "{box}/aaaa", "give a shorter one"),
    Case("jobs", lambda b: b.reproduce("--jobs", 0), "jobs=0", "a whole number of at least 1"),
    Case("out nul", lambda b: b.reproduce(out="a\0b"), r"a\x00b", "give a folder as text"),
)

NOTEBOOKS = (
    Case(
        "none",
        lambda b: b.reproduce("--notebooks", b.done),
        "{box}/done",
        "give --notebooks a folder",
    ),
    Case(
        "half",
        lambda b: b.reproduce("--notebooks", b.file("half/00_a.ipynb", '{"cells": [').parent),
        "half/00_a.ipynb is not readable",
        "restore it",
    ),
    Case(
        "another JSON",
        lambda b: b.reproduce("--notebooks", b.file("other/00_a.ipynb", "{}").parent),
        "other/00_a.ipynb is not readable",
        "restore it",
    ),
    Case(
        "shell in parameters",
        lambda b: b.reproduce("--notebooks", b.notebook("01_b.ipynb", "!pip install x").parent),
        "01_b.ipynb: its cell tagged 'parameters'",
        "leave only assignments in it",
    ),
    Case("refresh none", lambda b: ["notebooks", "no.ipynb"], "no.ipynb", "give the path of"),
    Case("refresh a folder", lambda b: ["notebooks", b.done], "{box}/done", "give the path of"),
    Case("refresh text", lambda b: ["notebooks", b.folder / "file"], "{box}/file", "restore it"),
)

COMMANDS = (
    Case(
        "unknown", lambda b: ["reproduec"], "invalid choice: 'reproduec'", "choose from 'reproduce'"
    ),
    Case("option", lambda b: ["cache", "--purge"], "arguments: --purge", "--help"),
    Case("one run", lambda b: ["compare", b.done], "required: RUN", "compare --help"),
    Case("verdicts", lambda b: ["verdicts", "no-run"], "'no-run'", MAKE),
    Case("verdicts, empty", lambda b: ["verdicts", ""], "no run ''", MAKE),
    Case("report, long", lambda b: ["report", LONG], "no run 'aaaa", MAKE),
    Case("compare", lambda b: ["compare", b.done, "no-run"], "'no-run'", MAKE),
    Case("readme", lambda b: ["readme", "no-run"], "'no-run'", MAKE),
    Case(
        "readme, no figure",
        lambda b: ["readme", b.done],
        "09_read_or_process.png",
        "run notebook 09",
    ),
    Case(
        "readme, no picture",
        lambda b: [
            "readme",
            b.run() and b.file("bad/figures/09_read_or_process.png", "x").parent.parent,
        ],
        "09_read_or_process.png is no readable picture",
        "run notebook 09 again",
    ),
    Case("record", lambda b: ["record", "no-run"], "'no-run'", MAKE),
    Case(
        "record, half a run",
        lambda b: ["record", b.file("half/claims.json", "[]").parent],
        "half has no provenance.json",
        MAKE,
    ),
    Case("cache", lambda b: ["cache", "no-run"], "no run 'no-run'", "give its folder or its name"),
    Case("cache, long", lambda b: ["cache", LONG], "no run 'aaaa", "give its folder or its name"),
    Case("twin of none", lambda b: ["random-init", "data/no"], "'data/no'", GIVE),
    Case("twin of the hub", lambda b: ["random-init", "a/b"], "'a/b' is no folder", "download it"),
    Case("twin there", lambda b: ["random-init", b.model, b.done], "{box}/done", "delete it, or"),
    Case(
        "twin in a file",
        lambda b: ["random-init", b.model, b.folder / "file" / "x"],
        "{box}/file/x",
        "give another folder",
    ),
    Case(
        "accuracy, no number",
        lambda b: ["eval-minivlm", b.model, "--n", "x"],
        "--n: invalid int value: 'x'",
        "eval-minivlm --help",
    ),
    Case(
        "accuracy, n",
        lambda b: ["eval-minivlm", b.model, "--n", 0, "--out", b.folder / "x"],
        "n=0",
        "give at least 1",
    ),
    Case(
        "accuracy, damaged results",
        lambda b: ["eval-minivlm", b.model, "--out", b.file("a.json", '{"base": ')],
        "{box}/a.json is not readable",
        "delete or restore it",
    ),
)

ENVIRONMENT = (
    Case(
        "engine",
        lambda b: b.reproduce(),
        "engine 'cloud' (VISDEPTH_ENGINE)",
        "use local or ray",
        (("VISDEPTH_ENGINE", "cloud"),),
    ),
    Case(
        "Ray",
        lambda b: b.reproduce(),
        "VISDEPTH_RAY='[1]'",
        "give JSON like",
        (("VISDEPTH_ENGINE", "ray"), ("VISDEPTH_RAY", "[1]")),
    ),
    Case(
        "no Ray there",
        lambda b: b.reproduce(),
        "RAY_ADDRESS='127.0.0.1:9'",
        "start it with ray start --head, or unset",
        (("VISDEPTH_ENGINE", "ray"), ("RAY_ADDRESS", "127.0.0.1:9")),
    ),
    Case(
        "results in a file",
        lambda b: b.reproduce(out=""),
        "VISDEPTH_RESULTS='{box}/file' is a file",
        "name a folder, or unset it",
        (("VISDEPTH_RESULTS", "{box}/file"),),
    ),
    Case(
        "cache in a file",
        lambda b: ["cache"],
        "VISDEPTH_RESULTS='{box}/file' is a file",
        "name a folder, or unset it",
        (("VISDEPTH_RESULTS", "{box}/file"),),
    ),
)
