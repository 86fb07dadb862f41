"""Checkpoint folders that are spoilt in one file, each loaded by a command."""

import json
import pickle

import safetensors.torch

from tests.bad_input.box import Case
from visdepth_utils.models.families import UNSUPPORTED

HUB = "fetch the checkpoint again"
FILES = "check the folder's files"
AUTO = {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}
TEMPLATE = "chat_template.jinja"
WEIGHTS = "model.safetensors"


def _weights(box, end: int | None = None, start: bytes = b"") -> bytes:
    whole = (box.model / WEIGHTS).read_bytes()
    return start + whole[len(start) : end]


def _of_mlx(box) -> bytes:
    tensors = safetensors.torch.load_file(box.model / WEIGHTS)
    return safetensors.torch.save(tensors, {"format": "mlx"})


CONFIGS = (
    Case("half", lambda b: b.load({"config.json": "{"}), "config.json' is not a valid JSON", FILES),
    Case("empty", lambda b: b.load({"config.json": ""}), "config.json' is not a valid JSON", FILES),
    Case("a list", lambda b: b.load({"config.json": "[]"}), "spoilt", "have a `model_type` key"),
    Case("no type", lambda b: b.load({"config.json": "{}"}), "spoilt", "have a `model_type` key"),
    Case(
        "unknown type",
        lambda b: b.load(b.config(model_type="my_vlm")),
        "family 'my_vlm' is not supported, because its tokens and rules are not in",
        "use one of",
    ),
    Case(
        "no family of ours",
        lambda b: b.load(b.config(model_type="molmo2")),
        "family 'molmo2' is not supported, because its tokens and rules are not in",
        "use one of the",
    ),
    *(
        Case(
            f"Gemma 4 with {what}",
            lambda b, text=text: b.load(b.config(model_type="gemma4", text_config=text)),
            f"family 'gemma4' is not supported, because its {why}",
            "use one of the",
        )
        for what, text, why in (
            ("embeddings by layer", {}, "layers also get embeddings of the tokens"),
            (
                "shared keys",
                {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2},
                "last layers read the keys of earlier ones",
            ),
        )
    ),
    Case(
        "text only",
        lambda b: b.load(
            {
                "config.json": json.dumps(
                    json.loads((b.model / "config.json").read_text())["text_config"]
                )
            }
        ),
        "family 'llama' is not supported, because its config.json has no vision_config",
        "use one of",
    ),
    Case(
        "no layers",
        lambda b: b.load(b.config(text={"num_hidden_layers": 0})),
        "spoilt' has no decoder layers",
        "fix num_hidden_layers in config.json",
    ),
    Case(
        "other layers",
        lambda b: b.load(b.config(text={"num_hidden_layers": 9})),
        "spoilt': 54 weights are missing",
        HUB,
    ),
    Case(
        "text for a number",
        lambda b: b.load(b.config(text={"hidden_size": "x"})),
        "spoilt' (StrictDataclassFieldValidationError: Validation error for field 'hidden_size'",
        FILES,
    ),
    *(
        Case(
            f"quantised by {kind}",
            lambda b, fields=fields: b.load(b.config(**fields)),
            f"spoilt' holds weights quantised by {kind}",
            "give the checkpoint that it was made from",
        )
        for kind, fields in {
            "AWQ": {"quantization_config": {"quant_method": "awq", "bits": 4}},
            "GPTQ": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "MLX": {"quantization": {"group_size": 64, "bits": 4}},
        }.items()
    ),
    Case(
        "of MLX",
        lambda b: b.load({WEIGHTS: _of_mlx(b)}),
        "spoilt' holds weights in MLX's layout",
        "give the checkpoint that it was made from",
    ),
    Case(
        "code of its own",
        lambda b: b.load({**b.config(model_type="my_vlm", auto_map=AUTO), "evil.py": "1 / 0"}),
        "family 'my_vlm' is not supported, because it comes with code of its own, which is not run",
        "use one of",
    ),
    *(
        Case(
            f"family {kind}",
            lambda b, kind=kind: b.load(
                {"config.json": json.dumps({"model_type": kind, "auto_map": AUTO})}
            ),
            f"family '{kind}' is not supported, because {why}; use one of ",
            "use one of",
        )
        for kind, why in UNSUPPORTED.items()
    ),
)

READERS = (
    Case("no template", lambda b: b.load({TEMPLATE: None}), "has no chat template", "save one as"),
    Case("half a template", lambda b: b.load({TEMPLATE: "{% for"}), "TemplateSyntaxError", HUB),
    Case(
        "a template that reaches out",
        lambda b: b.load({TEMPLATE: "{{ ''.__class__.__mro__[1].__subclasses__() }}"}),
        "SecurityError: access to attribute '__class__'",
        f"mend its {TEMPLATE}",
    ),
    Case(
        "a template that refuses",
        lambda b: b.load({TEMPLATE: "{{ raise_exception('no\\nsystem prompt') }}"}),
        "(TemplateError: no system prompt)",
        HUB,
    ),
    *(
        Case(
            f"a template with {what}",
            lambda b, text=text: b.load({TEMPLATE: text}),
            f"fails on sample 'probe' ({why}",
            f"mend its {TEMPLATE}",
        )
        for what, text, why in (
            ("a division by zero", "{{ 1 / 0 }}", "ZeroDivisionError"),
            ("a wrong type", "{{ 1 + 'a' }}", "TypeError"),
            ("no end", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
            ("too much text", "{{ 'a' * 10 ** 18 }}", "MemoryError"),
            ("another file", "{% include 'a' %}", "TypeError: no loader"),
        )
    ),
    *(
        Case(
            f"a template of text only, {how}",
            lambda b, text=text: b.load(
                {TEMPLATE: "{% for m in messages %}" + text + "{% endfor %}"}
            ),
            f"fails on sample 'probe' ({why}",
            "it takes messages of text only; give it a chat_template.jinja that goes through",
        )
        for how, text, why in (
            ("added", "{{ m['role'] + ': ' + m['content'] }}", "TypeError: can only concatenate"),
            ("written", "<image>{{ m.content }}", "it writes the list of a message's parts"),
        )
    ),
    Case(
        "several templates, none the default",
        lambda b: b.load(
            {
                TEMPLATE: None,
                "tokenizer_config.json": json.dumps(
                    {
                        **json.loads((b.model / "tokenizer_config.json").read_text()),
                        "chat_template": [
                            {"name": name, "template": "a"} for name in ("rag", "tool_use")
                        ],
                    }
                ),
            }
        ),
        "its chat templates are rag, tool_use, none is the default",
        f"save one as {TEMPLATE}",
    ),
    Case("no images in it", lambda b: b.load({TEMPLATE: "hello"}), "0 <image> tokens and 1", HUB),
    Case("no tokenizer", lambda b: b.load({"tokenizer.json": None}), "backend tokenizer", FILES),
    Case("half a tokenizer", lambda b: b.load({"tokenizer.json": "{"}), "load '{box}/sp", FILES),
    Case("no processor", lambda b: b.load({"processor_config.json": None}), "processor", FILES),
    Case(
        "half a processor",
        lambda b: b.load({"processor_config.json": "{"}),
        "processor_config.json",
        FILES,
    ),
)

TENSORS = (
    Case("half", lambda b: b.load({WEIGHTS: _weights(b, 9000)}), "incomplete metadata", FILES),
    Case("empty", lambda b: b.load({WEIGHTS: b""}), "SafetensorError", FILES),
    Case("head cut", lambda b: b.load({WEIGHTS: _weights(b, 20)}), "SafetensorError", FILES),
    Case(
        "head too long",
        lambda b: b.load({WEIGHTS: _weights(b, start=b"\xff" * 8)}),
        "header too large",
        FILES,
    ),
    Case("pickle", lambda b: b.load({WEIGHTS: pickle.dumps([1] * 99)}), "SafetensorError", FILES),
    Case("web page", lambda b: b.load({WEIGHTS: "<html>gone</html>"}), "SafetensorError", FILES),
    Case(
        "pointer of git-lfs",
        lambda b: b.load({WEIGHTS: "version https://git-lfs.github.com/spec/v1\noid sha256:a"}),
        "SafetensorError",
        FILES,
    ),
    Case(
        "a shard gone",
        lambda b: b.load(
            {
                WEIGHTS: None,
                "model-00001-of-00002.safetensors": _weights(b),
                "model.safetensors.index.json": json.dumps(
                    {"metadata": {}, "weight_map": {"x": "model-00002-of-00002.safetensors"}}
                ),
            }
        ),
        "lacks 'model-00002-of-00002.safetensors', which its model.safetensors.index.json names",
        HUB,
    ),
    Case(
        "a shard of another folder",
        lambda b: b.load(
            {
                WEIGHTS: None,
                "model-00001-of-00001.safetensors": _weights(b),
                "model.safetensors.index.json": json.dumps(
                    {"metadata": {}, "weight_map": {"x": "../model/model.safetensors"}}
                ),
            }
        ),
        "names weights outside of its folder ('../model/model.safetensors')",
        "put them into the folder",
    ),
    Case(
        "an index of nothing",
        lambda b: b.load(
            {
                WEIGHTS: None,
                "model-00001-of-00001.safetensors": _weights(b),
                "model.safetensors.index.json": json.dumps({"weight_map": []}),
            }
        ),
        "model.safetensors.index.json names no shards",
        HUB,
    ),
)
