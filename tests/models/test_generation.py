"""Generation: nothing a checkpoint says about it is in force, but the ids that end an answer."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from tests import tiny
from visdepth_utils import load_vlm, truncation_sweep
from visdepth_utils.measure.strategies import STRATEGIES, decode
from visdepth_utils.models.generation import decode_answers, generated, stop_ids, without_end
from visdepth_utils.models.vlm import VLM

SAMPLES = [tiny.sample(i, words=3 + i) for i in range(2)]
BUDGET = 5
OURS = {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version"}
WORDS = list(range(5, 40))
HARM = {
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 40,
    "min_new_tokens": 6,
    "early_stopping": "never",
    "max_time": 1e-9,
    "stop_strings": ["e", "o"],
    "do_sample": True,
    "num_beams": 3,
    "cache_implementation": "static",
    "repetition_penalty": 3.0,
    "encoder_repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[word] for word in WORDS],
    "forced_bos_token_id": 9,
    "forced_eos_token_id": 3,
    "exponential_decay_length_penalty": [0, 9.0],
    "suppress_tokens": WORDS,
    "begin_suppress_tokens": WORDS,
    "sequence_bias": [[[9], 50.0]],
    "guidance_scale": 3.0,
    "watermarking_config": {"bias": 50.0},
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "speculation_type": "dflash",
    "assistant_early_exit": 1,
    "prompt_lookup_num_tokens": 2,
    "num_assistant_tokens_schedule": "heuristic",
    "num_beam_groups": 3,
    "constraints": [1],
    "force_words_ids": [[9]],
    "dola_layers": "high",
    "compile_config": {"backend": "eager"},
    "temperature": 0.1,
    "custom_generate": "nobody/nothing",
}
"""Values that change answers or do not run; what is not named here is set to 2."""
LEAKS = (
    *("min_new_tokens", "min_length", "suppress_tokens", "begin_suppress_tokens", "max_time"),
    *("exponential_decay_length_penalty", "forced_eos_token_id"),
    *("bad_words_ids", "sequence_bias", "guidance_scale", "no_repeat_ngram_size"),
)
"""What transformers fills in from the checkpoint where a greedy setting leaves it open."""


def fields() -> list[str]:
    """Every field of the installed transformers, and one it does not know."""
    return [name for name in vars(GenerationConfig()) if name not in OURS] + ["custom_generate"]


def full(vlm: VLM) -> list[str]:
    """What the sweep says at full depth."""
    table = truncation_sweep(vlm, SAMPLES, depths=[vlm.n_layers], max_new_tokens=BUDGET)
    return table["output"].tolist()


def with_settings(vlm: VLM, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    """Let a loaded model have other settings beside its stop ids."""
    config = GenerationConfig(eos_token_id=stop_ids(vlm), pad_token_id=0)
    for name, value in settings.items():
        setattr(config, name, value)
    monkeypatch.setattr(vlm.model, "generation_config", config)


@pytest.fixture(scope="module")
def expected(llava: VLM) -> list[str]:
    """What the sweep says at full depth under harmless settings."""
    return full(llava)


@pytest.mark.parametrize("name", fields())
def test_no_field_of_a_checkpoint_changes_greedy(
    llava: VLM, expected: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_settings(llava, monkeypatch, **{name: HARM.get(name, 2)})
    assert llava.generate(SAMPLES, BUDGET) == expected
    if name in LEAKS:  # and it is harmful: transformers alone says something else
        enc = llava.encode(SAMPLES)
        greedy = GenerationConfig(max_new_tokens=BUDGET, do_sample=False, num_beams=1)
        ids = llava.model.generate(**enc.inputs, generation_config=greedy)
        assert (
            decode_answers(llava, ids[:, enc.inputs["input_ids"].shape[1] :].tolist()) != expected
        )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_is_its_own_whatever_the_checkpoint_says(
    llava: VLM, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"strategies": [strategy], "max_new_tokens": BUDGET}
    expected = [decode(llava, SAMPLES, depth=d, **options)["output"].tolist() for d in (1, 3)]
    if strategy == "greedy":
        assert expected[1] == full(llava)
    penalties = {"repetition_penalty": 1.5, "min_new_tokens": 5, "length_penalty": 9.0}
    with_settings(llava, monkeypatch, num_beams=3, top_k=1, min_p=0.9, **penalties)
    found = [decode(llava, SAMPLES, depth=d, **options)["output"].tolist() for d in (1, 3)]
    assert found == expected


def test_what_is_in_the_files_has_no_effect(llava_path: Path, llava: VLM, tmp_path: Path) -> None:
    folder = tiny.llava(tmp_path / "harmful")
    file = folder / "generation_config.json"
    kept = json.loads(file.read_text())
    names = ("repetition_penalty", "num_beams", "min_new_tokens", "suppress_tokens", "max_length")
    file.write_text(json.dumps(kept | {name: HARM[name] for name in names}))
    harmed = load_vlm(folder)
    assert harmed.model.generation_config.repetition_penalty == 3.0
    assert harmed.generate(SAMPLES, BUDGET) == full(harmed) == full(llava)


def test_all_stop_ids_count_also_those_that_are_words(stopping: VLM) -> None:
    stop = stop_ids(stopping)
    samples = [tiny.sample(i, words=3 + i) for i in range(5)]
    ids = generated(stopping, stopping.encode(samples), 12).tolist()
    ends = {without_end(row, stop)[1] for row in ids} - {None}
    assert len(ends) > 1 and not {stop[0]} & ends  # by words too, and not by the first id
    table = truncation_sweep(stopping, samples, max_new_tokens=12, with_token_ids=True)
    whole = table[table["depth"] == stopping.n_layers]
    assert [tuple(row) for row in whole[["token_ids", "end"]].to_numpy()] == [
        without_end(row, stop) for row in ids
    ]
    assert not any(set(said) & set(stop) for said in table["token_ids"])
    assert whole["output"].tolist() == stopping.generate(samples, 12)
    physical = truncation_sweep(
        stopping, samples, implementation="physical", max_new_tokens=12, with_token_ids=True
    )
    columns = ["sample", "depth", "output", "token_ids", "end"]
    assert physical[columns].equals(table[columns])
