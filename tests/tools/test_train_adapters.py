"""The command that trains the adapters of C6: what is asked for, and what is kept."""

from types import SimpleNamespace

import pytest

from tests import tiny
from tools import adapters as module
from visdepth_utils.claims.registry import claim_entry


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Every training asked for; none is made, but its files are."""
    made = []

    def adapter(vlm, samples, settings, folder, *, max_new_tokens, shipped, progress):
        target = folder / f"{samples[0].task}-{len(made)}"
        if len(made) == 1:  # this one is shipped already
            target = shipped / "base" / "there"
        target.mkdir(parents=True)
        for name in (*module.FILES, "state.pt"):
            (target / name).write_text(str(len(made)))
        made.append((samples[0].task, settings, len(samples)))
        return target

    samples = [tiny.sample(0)]
    monkeypatch.setattr(module, "adapter", adapter)
    monkeypatch.setattr(module, "load_vlm", lambda model: SimpleNamespace(n_layers=12))
    monkeypatch.setattr(module, "training_samples", lambda task, n: samples * n)
    task = SimpleNamespace(max_new_tokens=4)
    monkeypatch.setattr(module, "load_task", lambda name, n, vlm: task)
    return made


def test_every_rate_and_seed_is_trained_with_its_own_and_with_shuffled_pictures(asked, tmp_path):
    rule = claim_entry("C6")["distill"]
    work, shipped = tmp_path / "work", tmp_path / "shipped"
    folders = list(module.train_adapters("data/minivlm/base", 7, work, shipped))
    settings = {(s.rate, s.seed, s.shuffled) for _, s, _ in asked}
    assert len(settings) == 2 * len(rule["rates"]) * len(rule["seeds"])
    assert len(folders) == len(asked) == 2 * len(settings)  # captions and charts
    assert {(s.depth, s.steps, s.validation) for _, s, _ in asked} == {(4, 7, rule["validation"])}
    assert {n for *_, n in asked} == {rule["samples"] + rule["validation"]}
    assert folders[1] == shipped / "base" / "there"
    for k in (0, 2):
        assert folders[k].parent == shipped / "base"
        assert {file.name for file in folders[k].iterdir()} == set(module.FILES)
        assert (folders[k] / "losses.json").read_text() == str(k)


def test_the_budget_is_the_first_registered_one(asked, tmp_path):
    next(module.train_adapters("data/minivlm/base", None, tmp_path / "a", tmp_path / "b"))
    assert asked[0][1].steps == claim_entry("C6")["distill"]["steps"][0]
