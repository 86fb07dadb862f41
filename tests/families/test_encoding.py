"""What data and checkpoints may hold: odd texts, odd pictures, templates and half processors."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from tests.families.checkpoints import CHECKPOINTS
from tests.families.findings import SAMPLES, loaded
from visdepth_utils import load_task, load_vlm
from visdepth_utils.data.images import BadRow
from visdepth_utils.data.samples import Sample
from visdepth_utils.models.encoding import reference_ids
from visdepth_utils.models.prompts import drop_marks, non_text_ids, prompts, words_only
from visdepth_utils.models.reading import quiet
from visdepth_utils.models.vlm import VLM

ASKED = SAMPLES[0]


def _ids(vlm: VLM, text: str, with_reference: bool = False) -> list[int]:
    asked = replace(ASKED, reference=text) if with_reference else replace(ASKED, prompt=text)
    return vlm.encode([asked], with_reference).inputs["input_ids"][0].tolist()


def _control(vlm: VLM) -> dict[str, bool]:
    never, added = set(non_text_ids(vlm).tolist()), vlm.tokenizer.added_tokens_decoder
    return {token.content: token.special for i, token in added.items() if i in never}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_control_token_in_data_is_text(name: str) -> None:
    """In these vocabularies such a word is not known, as any other that is not."""
    vlm = loaded(name)
    known = _control(vlm)
    assert vlm.tokenizer.eos_token in known and CHECKPOINTS[name].image_token in known
    for with_reference in (False, True):
        expected = (
            None if CHECKPOINTS[name].tokens.bytes else _ids(vlm, "is xx left", with_reference)
        )
        for token, special in known.items():
            try:
                found = _ids(vlm, f"is x{token}x left", with_reference)
            except BadRow as error:
                assert not special and repr(token) in str(error)
            else:
                assert expected in (None, found), token
    if CHECKPOINTS[name].tokens.bytes:
        assert _ids(vlm, "is <|im_end|> left").count(vlm.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3", "mistral3"])
def test_a_word_that_is_a_control_token_is_refused_by_name(name: str) -> None:
    vlm = loaded(name)
    token = vlm.tokenizer.eos_token
    message = f"sample 'square': its text contains '{token}', which the tokenizer .* take it out"
    for with_reference in (False, True):
        with pytest.raises(BadRow, match=message.replace("|", r"\|")):
            _ids(vlm, f"is {token} left", with_reference)
    with pytest.raises(BadRow, match=message.replace("|", r"\|")):
        reference_ids(vlm, [replace(ASKED, reference=token)])


def test_text_with_control_tokens_is_read_as_without_them() -> None:
    """Byte pairs: the ids are those of a tokenizer that knows no control token."""
    vlm = loaded("qwen3_5")
    core = vlm.tokenizer.backend_tokenizer
    plain = Tokenizer(core.model)
    plain.pre_tokenizer, plain.normalizer = core.pre_tokenizer, core.normalizer
    for text in ("is <|im_end|> left ?", "<|image_pad|><think>a</think>", "a<|im_<|im_end|>end|>"):
        ids = _ids(vlm, text)
        expected = plain.encode(text).ids
        end = len(ids) - ids[::-1].index(vlm.tokenizer.convert_tokens_to_ids("<|im_end|>")) - 1
        assert ids[end - len(expected) : end] == expected
        assert vlm.encode([replace(ASKED, prompt=text)]).is_text[0, end - len(expected) : end].all()


SPM = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@pytest.mark.parametrize(
    ("normalizer", "before"),
    [
        (None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
        (SPM, None),
        (None, pre_tokenizers.Metaspace()),
    ],
    ids=["bytes", "NFC", "prepended", "metaspace"],
)
def test_marks_change_no_other_text(normalizer: Any, before: Any) -> None:
    core = Tokenizer(models.BPE())
    core.normalizer = normalizer
    if before:
        core.pre_tokenizer = before
    core.decoder = decoders.ByteLevel()
    texts = ["what is left </s> of <s> it ?", "<s> and </s> and <image> it is"] * 3
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    plain = Tokenizer.from_str(core.to_str())
    words = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    before_marks = words("what is <s> it ?")["input_ids"]
    drop_marks(words)
    assert words("what is <s> it ?")["input_ids"] == before_marks
    vlm = replace(loaded("llava"), processor=_Words(words))
    for text in ("what is </s> left", "</s>", "a <s></s> b", "no token é"):
        marked = words_only(vlm)(text, "s")
        assert words(marked, add_special_tokens=False)["input_ids"] == plain.encode(text).ids


class _Words:
    chat_template = ""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer


def test_a_mark_in_data_and_a_tokenizer_that_keeps_marks_are_refused(llava: VLM) -> None:
    with pytest.raises(BadRow, match=r"sample 's0': its text contains '\\U00100000'"):
        llava.encode([replace(tiny.sample(0), prompt="a \U00100000 b")])

    class Slow:
        def __getattr__(self, name: str) -> object:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(llava.tokenizer, name)

    write = words_only(replace(llava, processor=_Words(Slow())))
    assert write("left", "s") == "left"
    with pytest.raises(BadRow, match="sample 's': its text contains '</s>'"):
        write("left</s>", "s")


def test_a_template_knows_one_date_and_draws_one_word(
    llava: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = (
        "{{ strftime_now('%d %b %Y %H') }} {{ range(1000) | random }} {{ lipsum() }}"
        "{% for c in messages[0].content %}{{ c.text }}{% endfor %}"
    )
    monkeypatch.setattr(llava.processor, "chat_template", dated)
    random.seed(5)
    (said,) = prompts(llava, [ASKED], False)
    drawn = random.random()
    assert said.startswith("01 Jan 2025 00 ") and ASKED.prompt in said
    random.seed(5)
    assert random.random() == drawn  # the template's draws are no one else's
    assert prompts(llava, [ASKED], False) == [said]


def test_a_prompt_beyond_the_context_is_refused(
    llava: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = llava.model.config.get_text_config()
    fits = tiny.sample(0)
    n = llava.encode([fits]).is_image.shape[1]
    monkeypatch.setattr(text, "max_position_embeddings", n)
    assert len(llava.encode([fits])) == 1
    with pytest.raises(BadRow, match=rf"sample 's1': its prompt has {n + 3} tokens .* takes {n} "):
        llava.encode([fits, replace(tiny.sample(1, words=9))])
    with pytest.raises(BadRow, match=f"sample 's0': its prompt has {n + 2} tokens"):
        llava.encode([fits], with_reference=True)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_picture_of_an_odd_size_is_taken_or_blamed(name: str) -> None:
    vlm = loaded(name)
    for size in ((1, 1), (3, 3), (3, 1), (1, 300), (500, 2), (7, 900)):
        odd = replace(ASKED, id="odd", images=(Image.new("RGB", size),))
        width, height = size
        try:
            enc = vlm.encode([odd])
        except BadRow as error:
            assert f"'odd': {vlm.name} cannot take its picture of {width} x {height} " in str(error)
            with pytest.raises(BadRow, match="sample 'odd'"):
                vlm.encode([ASKED, odd])
        else:
            with torch.no_grad():
                assert vlm.model(**enc.inputs).logits.isfinite().all()


def test_a_row_that_the_model_cannot_take_is_bad_before_the_run(
    qwen: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qwen.model.config.get_text_config(), "max_position_embeddings", 60)
    for file, size in (("a.png", (56, 56)), ("thin.png", (300, 1))):
        Image.new("RGB", size).save(tmp_path / file)
    rows = [
        {"image": "a.png", "question": "what is it ?"},
        {"image": "thin.png", "question": "what is left ?"},
        {"image": "a.png", "question": "what is </s> ?"},
        {"image": "a.png", "question": "how many " * 40},
        {"image": "a.png", "question": "how many ?"},
    ]
    lines = [json.dumps({**row, "answer": "red"}) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = tmp_path / "rows.jsonl"
    assert len(load_task("vqa", source=source)) == 5
    with pytest.raises(BadRow, match=r"line 2: sample .* cannot take its picture of 300 x 1 "):
        load_task("vqa", source=source, vlm=qwen)
    task = load_task("vqa", source=source, vlm=qwen, on_bad_row="skip")
    assert [s.id for s in task.samples] == ["table-00001", "table-00005"]
    why = " ".join(task.selection["skipped"].values())
    assert "300 x 1" in why and "'</s>'" in why and "max_position_embeddings" in why


def test_a_row_of_worlds_that_the_model_cannot_take_is_named(worlds: Path, llava: VLM) -> None:
    assert len(load_task("vqa", source=worlds, vlm=llava)) == 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llava.model.config.get_text_config(), "max_position_embeddings", 9)
        with pytest.raises(BadRow, match="sample 'vqa-0-0-direct': its prompt has"):
            load_task("vqa", source=worlds, vlm=llava)


def _spoilt(name: str, folder: Path, file: str, change: Callable[[dict], None]) -> Path:
    CHECKPOINTS[name].write(folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_onevision", "mistral3", "pixtral"])
def test_what_a_processor_was_saved_without_comes_from_the_config(
    name: str, tmp_path: Path
) -> None:
    def forget(saved: dict) -> None:
        kind = saved["processor_class"]
        saved.clear()
        saved["processor_class"] = kind

    vlm = load_vlm(_spoilt(name, tmp_path / name, "processor_config.json", forget))
    for with_reference in (False, True):
        found, expected = (v.encode(SAMPLES, with_reference) for v in (vlm, loaded(name)))
        for key, value in expected.inputs.items():
            assert torch.equal(found.inputs[key], value), key


@pytest.mark.parametrize("form", ["text", "list", "one of another name"])
def test_a_chat_template_of_the_tokenizer_is_the_processors(form: str, tmp_path: Path) -> None:
    made = CHECKPOINTS["llava"]
    given = {
        "text": made.template,
        "list": [{"name": "rag", "template": "no"}, {"name": "default", "template": made.template}],
        "one of another name": [{"name": "chat", "template": made.template}],
    }[form]
    folder = _spoilt(
        "llava",
        tmp_path / "llava",
        "tokenizer_config.json",
        lambda saved: saved.update(chat_template=given),
    )
    (folder / "chat_template.jinja").unlink()
    found, expected = (vlm.encode(SAMPLES) for vlm in (load_vlm(folder), loaded("llava")))
    assert torch.equal(found.inputs["input_ids"], expected.inputs["input_ids"])


def test_a_decoder_that_no_sweep_can_replay_is_refused_at_load(tmp_path: Path) -> None:
    """Granite Vision: LLaVA-NeXT, whose text model multiplies the embedding."""
    made = CHECKPOINTS["llava_next"]
    text = {"model_type": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22}
    granite = replace(made, config=lambda ids: {**made.config(ids), "text_config": text})
    with quiet():
        folder = granite.write(tmp_path / "granite")
    with pytest.raises(ValueError, match="granite: the input of its first layer is not the word"):
        load_vlm(folder)


def test_samples_are_data(llava: VLM) -> None:
    """A text that looks like a template is not run."""
    asked: Sample = replace(ASKED, prompt="{{ 1 / 0 }} {% include 'a' %}")
    assert asked.prompt in prompts(llava, [asked], False)[0]
