"""Loading and encoding: masks, padding, checks at load, random initialisation, and each error."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFile
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils import is_torchvision_available

from tests import tiny
from visdepth_utils.models import checkpoints
from visdepth_utils.models.checks import check
from visdepth_utils.models.families import FAMILIES
from visdepth_utils.models.load import load_vlm
from visdepth_utils.models.no_videos import NoVideos
from visdepth_utils.models.reading import check_attention
from visdepth_utils.models.vlm import VLM
from visdepth_utils.runs import provenance


@pytest.fixture(params=["llava", "qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    """Each family in turn."""
    return request.getfixturevalue(request.param)


def test_attributes(llava: VLM) -> None:
    assert (llava.n_layers, llava.hidden_size, llava.family.model_type) == (3, 32, "llava")
    assert llava.dtype == torch.float32 and str(llava.device) == "cpu"
    assert llava.name.endswith("/llava") and len(llava.weights_hash) == 64
    assert not any(p.requires_grad for p in llava.model.parameters())


def test_model_is_the_stock_one(llava: VLM, llava_path: Path) -> None:
    stock = AutoModelForImageTextToText.from_pretrained(llava_path)
    assert type(llava.model) is type(stock)
    for mine, theirs in zip(llava.model.parameters(), stock.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_masks_are_disjoint_and_cover_all_but_specials(vlm: VLM) -> None:
    samples = [tiny.sample(0), tiny.sample(1, images=2, words=12), tiny.sample(2, images=0)]
    enc = vlm.encode(samples, with_reference=True)
    ids, attended = enc.inputs["input_ids"], enc.inputs["attention_mask"].bool()
    special = torch.isin(ids, torch.tensor(vlm.tokenizer.all_special_ids))
    assert not (enc.is_image & enc.is_text).any()
    assert not ((enc.is_image | enc.is_text) & ~attended).any()
    assert torch.equal(
        enc.is_image | enc.is_text, attended & (~special | (ids == vlm.image_token_id))
    )
    assert torch.equal(enc.is_image, ids == vlm.image_token_id)
    # The text is exactly the words of template, prompt and reference.
    template = ["system", ":", "you", "are", "a", "careful", "helper", ".", "user", ":"]
    for i, sample in enumerate(samples):
        words = [*template, *sample.prompt.split(), "assistant", ":", *sample.reference.split()]
        assert vlm.tokenizer.convert_ids_to_tokens(ids[i][enc.is_text[i]]) == words


def test_image_counts_follow_the_samples(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0), tiny.sample(1, images=3), tiny.sample(2, images=0)])
    assert enc.is_image.sum(-1).tolist() == [16, 48, 0]
    assert enc.inputs["pixel_values"].shape[0] == 4


def test_images_keep_their_order(llava: VLM) -> None:
    samples = [tiny.sample(0, images=2), tiny.sample(1), tiny.sample(2, images=2)]
    pixels = llava.encode(samples).inputs["pixel_values"]
    alone = [
        llava.encode([replace(s, images=(image,))]).inputs["pixel_values"][0]
        for s in samples
        for image in s.images
    ]
    assert torch.equal(pixels, torch.stack(alone))


def test_pixels_are_those_of_the_pil_backend(llava: VLM) -> None:
    image = Image.new("RGB", (32, 32), (255, 0, 51))
    pixels = llava.encode([replace(tiny.sample(0), images=(image,))]).inputs["pixel_values"][0]
    assert pixels[:, 5, 7] == pytest.approx([1.0, -1.0, -0.6], abs=1e-6)
    assert "Pil" in type(llava.processor.image_processor).__name__


def test_left_padding_and_one_bos(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0, words=2), tiny.sample(1, words=20)])
    mask, ids = enc.inputs["attention_mask"], enc.inputs["input_ids"]
    assert mask[0].tolist() == sorted(mask[0].tolist()) and mask[0, 0] == 0
    assert (ids == llava.tokenizer.bos_token_id).sum(-1).tolist() == [1, 1]
    assert enc.inputs["position_ids"][0].tolist()[-3:] == [
        int(mask[0].sum()) - k for k in (3, 2, 1)
    ]


def test_blind_batch_has_no_pixels(vlm: VLM) -> None:
    enc = vlm.encode([tiny.sample(0, images=0), tiny.sample(1, images=0, words=9)])
    assert "pixel_values" not in enc.inputs and not enc.is_image.any() and enc.is_text.any(-1).all()
    assert len(vlm.generate(enc.samples, 3)) == 2


def test_structural_tokens_are_neither(qwen: VLM) -> None:
    enc = qwen.encode([tiny.sample(0)])
    start, end = (enc.inputs["input_ids"][0] == i for i in (5, 6))
    assert start.sum() == end.sum() == 1
    assert not ((enc.is_image | enc.is_text)[0] & (start | end)).any()


def test_structural_tokens_need_not_be_special(llava: VLM) -> None:
    family = replace(llava.family, structural_tokens=("look", "not-in-vocabulary"))
    enc = replace(llava, family=family).encode([replace(tiny.sample(0), prompt="look at it")])
    words = llava.tokenizer.convert_ids_to_tokens(enc.inputs["input_ids"][0][enc.is_text[0]])
    assert words[-4:] == ["at", "it", "assistant", ":"] and "look" not in words


def test_generate_is_greedy_and_independent_of_the_batch(vlm: VLM) -> None:
    samples = [
        tiny.sample(0),
        tiny.sample(1, images=2, words=12),
        tiny.sample(2, images=0, words=3),
    ]
    calls: list[tuple[int, int, str]] = []
    answers = vlm.generate(samples, 4, batch_size=2, progress=lambda *a: calls.append(a))
    assert answers == [vlm.generate([s], 4)[0] for s in samples]
    assert [call[:2] for call in calls] == [(2, 3), (3, 3)]
    enc = vlm.encode(samples[:1])
    with torch.no_grad():
        first = int(vlm.model(**enc.inputs).logits[0, -1].argmax())
    assert vlm.generate(samples[:1], 1) == [vlm.tokenizer.decode([first], skip_special_tokens=True)]


def test_missing_mm_token_type_ids_is_refused(qwen: VLM, llava: VLM) -> None:
    class Forgetful:
        """A processor saved before mm_token_type_ids existed."""

        def __getattr__(self, name: str) -> object:
            return getattr(qwen.processor, name)

        def __call__(self, **kwargs: object) -> dict[str, torch.Tensor]:
            batch = dict(qwen.processor(**kwargs))
            del batch["mm_token_type_ids"]
            return batch

    broken = replace(qwen, processor=Forgetful())
    with pytest.raises(ValueError, match="no mm_token_type_ids.*qwen2_5_vl"):
        broken.encode([tiny.sample(0)])
    with pytest.raises(ValueError, match="no mm_token_type_ids"):
        replace(llava, family=FAMILIES["qwen2_vl"]).encode([tiny.sample(0)])


def test_checks_pass_on_both_families(vlm: VLM) -> None:
    check(vlm)


def test_check_finds_a_wrong_number_of_placeholders(tmp_path: Path) -> None:
    folder = tiny.llava(tmp_path / "wrong", processor_patch=16)
    with pytest.raises(ValueError, match="4 image placeholders but 16 image features"):
        load_vlm(folder)


def test_check_finds_a_layer_that_is_not_run(llava_path: Path) -> None:
    vlm = load_vlm(llava_path)
    decoder = vlm.model.get_decoder()
    decoder.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match="2 states were captured, 4 of shape"):
        check(vlm)


def test_check_finds_a_hook_that_changes_the_model(
    llava_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import visdepth_utils.models.checks as module

    vlm = load_vlm(llava_path)
    honest = module.capture
    monkeypatch.setattr(module, "capture", lambda *a, **k: honest(*a, **k) + 1e-6)
    with pytest.raises(ValueError, match="hooks that do nothing change the logits by"):
        check(vlm)


@pytest.mark.parametrize("mode", [True, "decoder"])
def test_random_init_is_deterministic_by_seed(
    llava_path: Path, llava: VLM, mode: bool | str
) -> None:
    one, same, other = (load_vlm(llava_path, random_init=mode, seed=s) for s in (0, 0, 1))
    pairs = list(zip(one.model.parameters(), same.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    up = [v.layers[1].mlp.up_proj.weight for v in (one, other, llava)]
    assert not torch.equal(up[0], up[1]) and not torch.equal(up[0], up[2])
    assert one.weights_hash == same.weights_hash
    assert len({one.weights_hash, other.weights_hash, llava.weights_hash}) == 3
    assert "random" in one.name


def test_random_decoder_keeps_tower_and_projector(llava_path: Path, llava: VLM) -> None:
    drawn = load_vlm(llava_path, random_init="decoder")
    trained = dict(llava.model.named_parameters())
    for name, value in drawn.model.named_parameters():
        if "vision_tower" in name or "projector" in name:
            assert torch.equal(value, trained[name]), name
        elif value.dim() > 1:
            assert not torch.equal(value, trained[name]), name
    image = llava.encode([tiny.sample(0)]).inputs["pixel_values"]
    a, b = (v.model.get_image_features(pixel_values=image).pooler_output[0] for v in (llava, drawn))
    assert torch.equal(a, b)


def test_random_init_std(llava_path: Path) -> None:
    own, wide = (load_vlm(llava_path, random_init=True, init_std=s) for s in (None, 0.3))
    for vlm, std in ((own, 0.1), (wide, 0.3)):
        weights = torch.cat([p.flatten() for p in vlm.layers.parameters() if p.dim() > 1])
        assert float(weights.std()) == pytest.approx(std, rel=0.03)
        assert all((p == 1).all() for p in vlm.layers.parameters() if p.dim() == 1)


def test_random_init_leaves_the_global_generator_alone(llava_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    load_vlm(llava_path, random_init=True)
    assert torch.equal(torch.rand(1), expected)


def test_bf16_files_are_upcast(tmp_path: Path) -> None:
    vlm = load_vlm(tiny.llava(tmp_path / "half", dtype=torch.bfloat16))
    assert {p.dtype for p in vlm.model.parameters()} == {torch.float32}


def test_load_error_messages(
    llava_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    shutil.copytree(llava_path, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").rename(tmp_path / "bin" / "pytorch_model.bin")
    shutil.copytree(llava_path, tmp_path / "cut")
    weights = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[:500])
    shutil.copytree(llava_path, tmp_path / "shape")
    config = json.loads((llava_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 5
    (tmp_path / "shape" / "config.json").write_text(json.dumps(config))
    shutil.copytree(llava_path, tmp_path / "untemplated")
    (tmp_path / "untemplated" / "chat_template.jinja").unlink()
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **small)).save_pretrained(
        tmp_path / "llama"
    )
    tiny.llava(tmp_path / "no-token", image_token=None)
    cases = {
        "data/minivlm/bas": "no checkpoint folder 'data/minivlm/bas' .* give an existing folder",
        "no-such-owner/no-such-model": "cannot load 'no-such-owner/no-such-model' .*HF_HUB_OFFLINE",
        str(tmp_path / "empty"): "holds no config.json",
        str(tmp_path / "bin"): r"no .safetensors weights \(pytorch_model.bin\): save it again",
        str(tmp_path / "cut"): "cannot load .*/cut' .*check the folder's files",
        str(tmp_path / "shape"): "18 weights are missing",
        str(tmp_path / "untemplated"): "no chat template",
        str(
            tmp_path / "llama"
        ): "family 'llama' is not supported, because its config.json has no vision_config",
        str(tmp_path / "no-token"): "image token",
    }
    for path, message in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_vlm(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500, path


def test_the_hash_is_of_the_weights_that_are_read(llava_path: Path, tmp_path: Path) -> None:
    """Shards by their index, a file that config.json names, and nothing outside of the folder."""
    whole = checkpoints.weights_hash(str(llava_path), "")
    folder, other = tmp_path / "model", tmp_path / "other"
    for seed, target in enumerate((folder, other)):
        vlm = load_vlm(llava_path, random_init=True, seed=seed)
        shutil.copytree(llava_path, target)
        (target / "model.safetensors").unlink()
        vlm.model.save_pretrained(target, max_shard_size="20kB")
    index = folder / "model.safetensors.index.json"
    shards = checkpoints.weight_files(folder)
    assert len(shards) > 2 and not (folder / "model.safetensors").exists()
    found = {whole, checkpoints.weights_hash(str(folder), "")}
    for sub in ("", "deeper/"):  # the other's weights, under one name and under another
        (folder / sub).mkdir(exist_ok=True)
        for file in checkpoints.weight_files(other):
            shutil.copyfile(file, folder / f"{sub}new-{file.name}")
        (folder / "new-of-none.safetensors").write_bytes(b"not read")
        weight_map = json.loads(index.read_text())["weight_map"]
        weight_map = {
            k: f"{sub}new-{Path(v).name.removeprefix('new-')}" for k, v in weight_map.items()
        }
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        assert provenance.model_identity(str(folder))["weights_hash"] == checkpoints.weights_hash(
            str(other), ""
        )
    assert load_vlm(folder).weights_hash == checkpoints.weights_hash(str(other), "") not in found
    shutil.copyfile(llava_path / "model.safetensors", folder / "mine.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for name in ("mine.safetensors", "../other/mine.safetensors", str(other / "mine.safetensors")):
        changed = {**config, "transformers_weights": name}
        (folder / "config.json").write_text(json.dumps(changed))
        if name == "mine.safetensors":
            assert load_vlm(folder).weights_hash == whole
            continue
        with pytest.raises(ValueError, match=r"config.json names weights outside of its folder"):
            load_vlm(folder)
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(llava_path / "model.safetensors", tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": name}}))
        with pytest.raises(ValueError, match=r"index.json names weights outside of its folder"):
            load_vlm(folder)


def test_bad_arguments(llava_path: Path) -> None:
    for kwargs, message in [
        ({"attn": "flash_attention_2"}, "attn='flash_attention_2' takes no mask"),
        ({"random_init": "tower"}, "random_init='tower' is unknown"),
        ({"init_std": 0.1}, "set random_init too"),
        ({"dtype": "float99"}, "dtype='float99' is unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_vlm(llava_path, **kwargs)


def test_bad_images_name_the_sample(llava: VLM) -> None:
    import io

    buffer = io.BytesIO()
    tiny.picture(0, 256).save(buffer, "png")
    half = Image.open(io.BytesIO(buffer.getvalue()[:9000]))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    for images, message in [
        ((None,), "sample 's0': image 'i0' is missing .*NoneType"),
        ((half,), "sample 's0': image 'i0' cannot be decoded"),
    ]:
        with pytest.raises(ValueError, match=message):
            llava.encode([tiny.sample(1), replace(tiny.sample(0), images=images)])
    with pytest.raises(
        ValueError, match="sample 's0': its text contains '<image>', which the tokenizer"
    ):
        llava.encode([replace(tiny.sample(0), prompt="what is <image> ?")])
    with pytest.raises(ValueError, match="no samples"):
        llava.encode([])


def test_loading_and_generating_print_nothing(llava_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parents[2])!r}]; from tests import tiny\n"
        "from visdepth_utils import load_vlm\n"
        f"for r in (False, True, 'decoder'): load_vlm({str(llava_path)!r}, random_init=r)\n"
        f"load_vlm({str(llava_path)!r}).generate([tiny.sample(0)], 2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_package_import_is_light() -> None:
    code = (
        "import sys, visdepth_utils; print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_plain_transformers_loads_what_we_load(llava_path: Path) -> None:
    AutoProcessor.from_pretrained(llava_path)


@pytest.mark.parametrize("size", ["small", "base"])
def test_embedded_checkpoints(size: str) -> None:
    folder = Path(__file__).parents[2] / "data" / "minivlm" / size
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is not trained yet")
    vlm = load_vlm(f"data/minivlm/{size}")
    assert vlm.name == f"minivlm/{size}"
    assert int(vlm.encode([tiny.sample(0)]).is_image.sum()) == 64


def test_public_names_resolve() -> None:
    import visdepth_utils

    for name in visdepth_utils.__all__:
        assert callable(getattr(visdepth_utils, name)) and name in dir(visdepth_utils)
    with pytest.raises(AttributeError, match="has no attribute 'load_model'; it offers"):
        _ = visdepth_utils.load_model


def test_processors_that_also_take_videos_load_without_torchvision(qwen: VLM) -> None:
    assert type(qwen.processor).__name__ == "Qwen2_5_VLProcessor"
    if is_torchvision_available():
        pytest.skip("torchvision is installed here: nothing stands in for the video half")
    assert isinstance(qwen.processor.video_processor, NoVideos)
    with pytest.raises(ValueError, match="videos need torchvision.*give images"):
        qwen.processor(text=["<|video_pad|>"], videos=[[tiny.picture(0)]])
    with pytest.raises(TypeError, match="video_processor|image_processor|class"):
        type(qwen.processor)(image_processor=NoVideos(), tokenizer=qwen.tokenizer)


OVERWRITTEN = {
    "_attn_implementation": "nobody/kernel:forward",
    "attn_implementation": "flex_attention",
    "_attn_implementation_internal": "flash_attention_2",
    "_experts_implementation": "nobody/kernel",
    "return_dict": False,
    "output_hidden_states": True,
    "is_encoder_decoder": True,
    "fusion_config": {"patch_embeddings": True},
    "use_pretrained_backbone": True,
    "auto_map": {"AutoModel": "nobody/code--modeling.Model"},
    "repetition_penalty": 3.0,
    "dtype": "float16",
}


@pytest.mark.parametrize(
    ("settings", "random_init"),
    [(OVERWRITTEN, False), (OVERWRITTEN, True), ({"output_attentions": True}, False)],
)
def test_how_a_model_runs_is_not_the_checkpoints_to_say(
    llava_path: Path, tmp_path: Path, settings: dict[str, object], random_init: bool
) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(llava_path, folder)
    config = json.loads((llava_path / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.update(settings)
    (folder / "config.json").write_text(json.dumps(config))
    one, two = (load_vlm(path, random_init=random_init) for path in (llava_path, folder))
    enc = one.encode([tiny.sample(0)])
    logits = [vlm.model(**enc.inputs).logits for vlm in (one, two)]
    assert torch.equal(*logits)
    parts = [part for part in two.model.modules() if isinstance(part, PreTrainedModel)]
    assert len(parts) > 3 and {part.config._attn_implementation for part in parts} == {"sdpa"}
    assert one.generate([tiny.sample(0)], 4) == two.generate([tiny.sample(0)], 4)


def test_another_attention_than_was_asked_for_is_found(llava: VLM) -> None:
    check_attention(llava.model, "sdpa", "m")
    with pytest.raises(ValueError, match="'m' runs sdpa attention where eager was asked for"):
        check_attention(llava.model, "eager", "m")


def test_what_a_checkpoint_names_is_not_fetched(llava_path: Path, tmp_path: Path) -> None:
    for name, file, extra, message in [
        (
            "fp8",
            "config.json",
            {"quantization_config": {"quant_method": "fp8"}},
            "quantised by FP8",
        ),
        (
            "audio",
            "processor_config.json",
            {
                "audio_tokenizer": {
                    "audio_tokenizer_class": "DacModel",
                    "audio_tokenizer_name_or_path": "nobody/audio",
                }
            },
            "names an audio tokenizer, which is not fetched",
        ),
    ]:
        shutil.copytree(llava_path, tmp_path / name)
        path = tmp_path / name / file
        path.write_text(json.dumps(json.loads(path.read_text()) | extra))
        with pytest.raises(ValueError, match=message):
            load_vlm(tmp_path / name)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": "cuda:99"}, "sends '' to 'cuda:99', which is not there: use 'cpu', 'disk'"),
        ({"": "gpu"}, "sends '' to 'gpu', which is not there"),
        ({"": 99}, "sends '' to 99, which is not there"),
        (["cpu"], r"device_map=\['cpu'\]: give a name or a dict"),
    ],
)
def test_a_bad_device_map_is_to_blame(llava_path: Path, device_map: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_vlm(llava_path, device_map=device_map)


def test_what_transformers_says_about_a_device_map_is_not_the_files_fault(
    llava_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object, **_kwargs: object) -> None:
        raise ValueError("the map does not cover it")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", fails)
    with pytest.raises(ValueError, match="check device_map, or leave it out"):
        load_vlm(llava_path, device_map={"lm_head": "cpu"})
