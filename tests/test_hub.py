"""Weights travel over the hub with their config and a card, and come back as they were; a stand-in plays the hub."""

import json

import numpy as np
import pytest
from huggingface_hub import constants

from tests import hub as stand_in
from tests import tiny
from trm_jax import Solver, config
from trm_jax.jobs import evaluate
from trm_jax.runtime import files
from trm_jax.weights import command, weights_file
from trm_jax.weights import hub as hub_lib
from trm_jax.weights.hub import HubError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with stand_in.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_there_and_back(hub, tmp_path, capsys):
    assert command.main(["push", "me/quick", "--weights=rsm-maze-quick"]) == 0
    assert f"{hub.url}/me/quick: " in capsys.readouterr().out
    assert set(hub.repos["me/quick"]) == {"model.safetensors", "config.json", "README.md"}
    assert hub.tokens == {"Bearer hf_secret"}
    there, here = weights_file.read("hf://me/quick"), weights_file.read("rsm-maze-quick")
    assert there.experiment == here.experiment
    for name, leaf in weights_file.by_name(here.weights).items():
        np.testing.assert_array_equal(leaf, weights_file.by_name(there.weights)[name])

    assert command.main(["pull", "me/quick", f"--out={tmp_path / 'quick'}"]) == 0
    assert weights_file.read(tmp_path / "quick").metadata == there.metadata
    assert config.parse(files.read_json(tmp_path / "quick" / "config.json")) == here.experiment
    assert command.main(["pull", "me/quick", f"--out={tmp_path / 'quick'}"]) == 2
    assert "quick is there already: give a new folder" in capsys.readouterr().err


def test_a_card_says_where_its_figures_come_from(hub):
    export = weights_file.read("rsm-maze-quick")
    command.push(export, "me/quick")
    text, found = hub.repos["me/quick"]["README.md"].decode(), export.metadata["evaluation"]
    for figure in found["figures"]:
        assert any(line.startswith("|") and f"{100 * figure['exact_accuracy']:.2f}" in line and f"{figure['n']:,}" in
                   line for line in text.splitlines()), figure["H_test"]
    for part in (found["device"], found["finished"], found["versions"]["jax"], found["dataset"], "hf://me/quick",
                 "python -m trm_jax data maze --generate", f"{export.model.parameter_count():,} parameters"):
        assert part in text
    command.push(tiny.export(), "me/untested", "float32")
    assert "No evaluation came with these weights." in hub.repos["me/untested"]["README.md"].decode()


def test_a_second_push_is_what_is_read_then_and_revisions_stay(hub):
    first, second = tiny.export(0), tiny.export(1)
    command.push(first, "me/tiny", "float32")
    old = list(hub.commits["me/tiny"])[-1]
    command.push(second, "me/tiny", "float32")

    def embedding(source):
        return np.asarray(weights_file.read(source).weights.params["embed_tokens"])
    np.testing.assert_array_equal(embedding("hf://me/tiny"), second.weights.params["embed_tokens"])
    np.testing.assert_array_equal(embedding(f"hf://me/tiny@{old}"), first.weights.params["embed_tokens"])


def test_without_a_network_the_cache_answers_or_one_line_says_what_would_do(hub, monkeypatch, capsys):
    command.push(tiny.export(), "me/tiny")
    weights_file.read("hf://me/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Solver.load("hf://me/tiny").domain.seq_len == 16
    with pytest.raises(HubError, match="^hf://me/other is not in the cache, and the hub cannot be reached .*"
                       "python -m trm_jax weights pull me/other --out=FOLDER, and then --weights=FOLDER here$"):
        weights_file.read("hf://me/other")
    assert command.main(["push", "me/tiny", "--weights=rsm-maze-quick"]) == 2
    assert "hub cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("source, says", [
    ("hf://me/none", "the hub has no such model, or it is not for everybody"),
    ("hf://me/tiny@v2", "the model has no such revision"), ("hf://me/foreign", "has no model.safetensors"),
    ("hf://tiny", "is no model of the hub: it must be hf://OWNER/NAME"), ("hf://me/tiny@", "is no model of the hub"),
    ("hf://../etc", "is no model of the hub"), ("hf://me/a/b", "is no model of the hub")])
def test_what_is_not_there_is_named(hub, source, says):
    hub.repos |= {"me/tiny": {}, "me/foreign": {}}
    hub.commit("me/tiny", {"model.safetensors": b""})
    hub.commit("me/foreign", {"pytorch_model.bin": b"x"})
    with pytest.raises(HubError, match=says):
        weights_file.read(source)


def test_what_is_damaged_is_not_pulled(hub, tmp_path):
    hub.repos["me/bad"] = {}
    hub.commit("me/bad", dict.fromkeys((hub_lib.MODEL, hub_lib.CONFIG, hub_lib.CARD), b"nonsense"))
    with pytest.raises(weights_file.WeightsError, match="damaged or no safetensors file"):
        command.pull("me/bad", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("source", ["hf://me/tiny", "folder"])
def test_evaluate_takes_weights_from_everywhere(hub, tmp_path, source):
    data = tiny.make_dataset(tmp_path / "data", test=3)
    export = tiny.export()
    command.push(export, "me/tiny", "float32")
    command.pull("me/tiny", tmp_path / "folder")
    where = tmp_path / "folder" if source == "folder" else source
    e = config.with_fields(export.experiment, {"data.path": str(data), "eval.H_test": [1]})
    result = evaluate.evaluate_file(e, tmp_path / "run", where, note=lambda _: None)
    assert result["weights"]["sha256"] == files.digest(tmp_path / "folder" / "model.safetensors")
    assert json.loads(next((tmp_path / "run" / "eval").glob("step_1.*.json")).read_text())["step"] == 1
