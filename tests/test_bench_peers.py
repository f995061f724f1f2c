"""The published code is stood in for by a few modules with its names: weights go over, both sides take turns."""

import json

import pytest

from trm_jax.reports import bench

SMALL = [f"--set={field}" for field in (
    "global_batch_size=8", "arch.hidden_size=16", "arch.puzzle_emb_ndim=16", "arch.puzzle_emb_len=1",
    "arch.num_heads=2", "arch.forward_dtype=float32", "arch.expansion=1.0", "data.path=no-dataset",
    "curriculum_milestones=", "curriculum_heads_to_add=", "curriculum_L_milestones=", "curriculum_L_to_add=")]

RSM = """
import torch
from torch import nn


class Part(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        for name, size in sizes.items():
            setattr(self, name, nn.Linear(size, size, bias=False) if isinstance(size, int) else size)


class RSM(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        D, T = sizes["hidden_size"], sizes["seq_len"] + 1
        swiglu = [Part(gate_up_proj=nn.Linear(n, 512, bias=False), down_proj=nn.Linear(256, n, bias=False))
                  for n in (T, D)]
        self.core = Part(layers=nn.ModuleList([Part(mlp_t=swiglu[0], mlp=swiglu[1])]))
        self.core.forward = lambda x: x
        self.embed_tokens, self.lm_head = nn.Module(), nn.Linear(D, sizes["vocab_size"], bias=False)
        self.embed_tokens.embedding_weight = self.lm_head.weight
        self.puzzle_emb = nn.Module()
        self.puzzle_emb.register_buffer("weights", torch.zeros(1, D))
        for name in ("H_init", "L_init"):
            self.register_buffer(name, torch.zeros(D))

    def forward(self, carry, batch):
        return carry, {"logits": self.lm_head(self.embed_tokens.embedding_weight[batch["inputs"].long()])}
"""
LOSSES = """
from torch import nn


class LossHead(nn.Module):
    def __init__(self, model, loss_type):
        super().__init__()
        self.model = model

    def initial_carry(self, batch):
        return None

    def forward(self, carry, batch, return_keys):
        logits = self.model(carry=carry, batch=batch)[1]["logits"]
        return carry, logits.logsumexp(-1).sum(), {}, {}, True
"""
ROWS = """
class CastedSparseEmbeddingSignSGD_Distributed:
    def __init__(self, buffers, lr, world_size, weight_decay):
        assert len(list(buffers)) == 1 and world_size == 1

    def step(self):
        pass

    zero_grad = step
"""


@pytest.fixture
def clone(tmp_path):
    for name, text in (("recursive_reasoning/rsm", RSM), ("losses", LOSSES), ("sparse_embedding", ROWS)):
        file = tmp_path / "clone" / "models" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "clone"


def test_both_take_turns(clone, tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "peers.json"
    assert bench.main(["peers", f"--rsm={clone}", "--variants=eager", "--repeats=2", f"--out={out}", *SMALL]) == 0
    [found] = json.loads(out.read_text())["peers"]
    assert (found["batch"], found["H"], found["L"], found["optimizer"]) == (8, 2, 2, "a stand-in for adam-atan2")
    assert {(job, side): len(times) for job, sides in found["seconds"].items() for side, times in sides.items()} == {
        (job, side): 2 for job in ("step", "answer") for side in ("ours", "eager")}
    text = capsys.readouterr().out
    assert "a stand-in for adam-atan2" in text and "rsm_sudoku step, batch 8, H 2, L 2, float32" in text


def test_what_is_refused(clone, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        bench.main(["peers"])
    assert status.value.code == 2
    assert bench.main(["peers", f"--trm={clone}", *SMALL]) == 2  # without PyTorch, or without such a module
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: --trm={clone.resolve()}: No module named" in error and "pip install torch einops pydantic" in error
