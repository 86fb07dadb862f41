"""Words of image tokens equal those of a naive loop, on a checkpoint of every family."""

import pytest
import torch

from tests.families import naive
from tests.families.checkpoints import CHECKPOINTS
from tests.families.findings import SAMPLES, loaded
from visdepth_utils.measure.token_lens import token_lens
from visdepth_utils.models.prompts import non_text_ids
from visdepth_utils.models.vlm import VLM

BANK = ("what is left ?", "look at the red square", "yes it is red")
TOP = 3


def seen(vlm: VLM, run) -> list[torch.Tensor]:
    """What goes into each layer, and what comes out of the last, (S, D)."""
    found, layers = [], vlm.model.get_decoder().layers
    hooks = [
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs: found.append(
                (args or [kwargs["hidden_states"]])[0][0].clone()
            ),
            with_kwargs=True,
        )
        for layer in layers
    ]

    def last(_module, _args, output) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    hooks.append(layers[-1].register_forward_hook(last))
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def ended_here(vlm: VLM, enc, state: torch.Tensor) -> torch.Tensor:
    """Logits (S, V) of the model's own pass, in which the last layer returns this state."""

    def replaced(_module, _args, output):
        return (state[None], *output[1:]) if isinstance(output, tuple) else state[None]

    with vlm.model.get_decoder().layers[-1].register_forward_hook(replaced), torch.no_grad():
        return vlm.model(**enc.inputs, use_cache=False).logits[0].float()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_words_are_those_of_a_naive_loop(name: str) -> None:
    vlm, sample = loaded(name), SAMPLES[1 if name != "paligemma" else 0]
    table = token_lens(vlm, [sample], bank=BANK, top=TOP)
    enc, word = vlm.encode([sample]), lambda i: vlm.tokenizer.decode([i]).strip()
    states = seen(vlm, lambda: vlm.model(**enc.inputs, use_cache=False))
    assert len(states) == vlm.n_layers + 1
    never, bank = non_text_ids(vlm).tolist(), []
    for sentence in BANK:
        ids = vlm.tokenizer(sentence)["input_ids"]
        decoder = vlm.model.get_decoder()
        layers = seen(vlm, lambda i=ids: decoder(input_ids=torch.tensor([i]), use_cache=False))  # noqa: B023
        bank += [(word(i), [s[n] for s in layers]) for n, i in enumerate(ids) if i not in never]
    assert len(bank) > 8
    image = enc.is_image[0].nonzero()[:, 0].tolist()
    for layer, state in enumerate(states):
        logits = ended_here(vlm, enc, state)
        mine = table[table["layer"] == layer].set_index(["lens", "token"])
        assert len(mine) == 2 * len(image)
        for token, place in enumerate(image):
            probability, order = logits[place].softmax(-1).sort(descending=True)
            said = mine.loc[("logit", token)]
            assert said["words"] == list(dict.fromkeys(word(int(i)) for i in order[:TOP]))
            assert said["score"] == pytest.approx(float(probability[0]), abs=1e-5)
            like = [
                (float(torch.cosine_similarity(state[place], one[layer], dim=0)), text)
                for text, one in bank
            ]
            like.sort(key=lambda pair: -pair[0])
            said = mine.loc[("text", token)]
            assert said["score"] == pytest.approx(like[0][0], abs=1e-5)
            assert said["words"] == list(dict.fromkeys(text for _, text in like))[:TOP]


def test_the_logit_lens_of_the_last_state_says_what_the_model_says_next() -> None:
    for name in ("llava", "gemma3", "qwen3_vl"):
        vlm = loaded(name)
        for sample in SAMPLES:
            table = token_lens(vlm, [sample], modality="text", lenses=["logit"], top=1)
            said = table.loc[table["layer"] == vlm.n_layers, "words"].str[0]
            enc = vlm.encode([sample])
            next_ids = naive.run(vlm, enc)[enc.is_text[0]].argmax(-1)
            assert said.tolist() == [vlm.tokenizer.decode([int(i)]).strip() for i in next_ids]
