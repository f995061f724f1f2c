"""Times our training step beside that of the published PyTorch code, of which you have a clone.

    python -m trm_jax bench peers --rsm=CLONE_OF_RSM --trm=CLONE_OF_TRM
    python -m trm_jax bench peers --rsm=CLONE_OF_RSM --set global_batch_size=16 --set arch.forward_dtype=float32

Needs PyTorch (the torch extra), and what the clone's models import (einops, pydantic). Both sides get the same sizes,
weights and batch, at the config's last H and L, and take turns on the same device. A step is forward, loss, backward,
clipping and the update of network and puzzle table; ours updates an EMA as well. The losses of the first step tell that
both sides compute the same. Theirs runs on one device: of several, show this command one (CUDA_VISIBLE_DEVICES=0). An
answer is a forward pass of H outer cycles, or of one supervision step. Where the
adam-atan2 package is not installed, its formula in plain PyTorch stands in for it, and the table says so. Nothing of
the published code is in this package.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax import config
from trm_jax.inference import slots
from trm_jax.models.network import Weights
from trm_jax.reports import bench_step
from trm_jax.reports.compare import alone
from trm_jax.runtime import arguments, distributed, files
from trm_jax.runtime.errors import UserError, guarded
from trm_jax.runtime.text import table
from trm_jax.weights.published_names import state_dict

# Option -> config, module and class of the network, class of the loss.
PEERS = {"rsm": ("rsm_sudoku", "models.recursive_reasoning.rsm", "RSM", "LossHead"),
         "trm": ("trm_mlp_sudoku", "models.recursive_reasoning.trm", "TinyRecursiveReasoningModel_ACTV1",
                 "ACTLossHead")}
VARIANTS = ("eager", "core", "whole")


class PeerError(UserError):
    """A clone that cannot be run."""


def atan2_optimizer(torch: Any) -> tuple[Any, str]:
    """(class of the AdamATan2, what it is)."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("adam_atan2").AdamATan2, "adam-atan2"

    class StandIn(torch.optim.Optimizer):
        """The package's formula (training/optimizers.py), a few operations for all parameters at once."""

        def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float):
            super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
            self.count, self.moments = 0, None

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            [group] = self.param_groups
            params = [p for p in group["params"] if p.grad is not None]
            grads, (b1, b2), lr = [p.grad for p in params], group["betas"], group["lr"]
            m, v = self.moments = self.moments or tuple([torch.zeros_like(p) for p in params] for _ in range(2))
            self.count += 1
            torch._foreach_lerp_(m, grads, 1 - b1)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, grads, grads, 1 - b2)
            roots = torch._foreach_sqrt(torch._foreach_div(v, 1 - b2 ** self.count))
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            updates = [torch.atan2(a, b) for a, b in zip(m, roots)]
            torch._foreach_add_(params, updates, alpha=-lr / (1 - b1 ** self.count))
    return StandIn, "a stand-in for adam-atan2"


def published(which: str, clone: Path) -> tuple[Any, Any, Any, Any]:
    """(torch, class of the network, class of the loss, class of the puzzle table's optimiser)."""
    _, module, network, loss = PEERS[which]
    try:
        torch = importlib.import_module("torch")
        sys.path.insert(0, str(clone))
        return (torch, getattr(importlib.import_module(module), network),
                getattr(importlib.import_module("models.losses"), loss),
                importlib.import_module("models.sparse_embedding").CastedSparseEmbeddingSignSGD_Distributed)
    except (ImportError, AttributeError) as error:
        raise PeerError(f"--{which}={clone}: {error}. It must be a clone of the published code, and what it imports "
                        "must be installed (pip install torch einops pydantic)") from None


class Peer:
    """The published network with our weights, a loss and its optimisers."""

    def __init__(self, which: str, clone: Path, ours: bench_step.Contender, variant: str):
        torch, made, head, rows = published(which, clone)
        self.torch = torch
        self.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        e, shape = ours.system.experiment, ours.system.shape
        a, self.H = e.arch, ours.H
        sizes = {name: getattr(a, name) for name in (
            "hidden_size", "num_heads", "expansion", "L_layers", "H_layers", "puzzle_emb_ndim", "puzzle_emb_len",
            "mlp_t", "pos_encodings", "rms_norm_eps", "rope_theta", "forward_dtype", "halt_max_steps",
            "halt_exploration_prob", "no_ACT_continue", "prob_detach_prev_H")}
        with torch.device(self.device):
            network = made(sizes | {"batch_size": e.global_batch_size, "seq_len": shape.seq_len, "vocab_size":
                                    shape.vocab_size, "num_puzzle_identifiers": shape.num_puzzle_identifiers,
                                    "H_cycles": ours.H, "L_cycles": ours.L, "causal": False})
            self.model = head(network, a.loss.loss_type)
        inner: Any = network if which == "rsm" else network.inner
        weights = state_dict(ours.state.params, ours.state.fixed, ours.state.table, a)
        theirs = inner.state_dict()
        if missing := sorted(set(theirs) ^ set(weights)):
            raise PeerError(f"--{which}={clone}: its network has other weights than ours: {', '.join(missing)}")
        inner.load_state_dict({name: torch.tensor(np.asarray(weights[name], np.float32)).to(at.dtype)
                               for name, at in theirs.items()})
        core: Any = network.core if which == "rsm" else inner.L_level
        if variant != "eager":
            (core if variant == "core" else self.model).compile()
        adam, self.optimizer = atan2_optimizer(torch)
        if e.optimizer == "adamw":
            adam, self.optimizer = torch.optim.AdamW, "PyTorch's AdamW"
        self.optimizers = [adam(self.model.parameters(), lr=e.lr, betas=(e.beta1, e.beta2),
                                weight_decay=e.weight_decay)]
        if a.puzzle_emb_ndim:
            self.optimizers.append(rows(inner.puzzle_emb.buffers(), lr=e.puzzle_emb_lr, world_size=1,
                                        weight_decay=e.puzzle_emb_weight_decay))
        self.batch = {name: torch.tensor(np.asarray(value)).to(self.device) for name, value
                      in ours.batch._asdict().items()}
        self.batch["labels"] = self.batch["labels"].to(torch.int64)
        self.size, self.clip = e.global_batch_size, e.grad_clip_norm
        with torch.device(self.device):
            self.fresh = self.carry = self.model.initial_carry(self.batch)

    def step(self) -> float:
        """The loss of the batch, waited for."""
        self.model.train()
        self.carry, loss, *_ = self.model(carry=self.carry, batch=self.batch, return_keys=[])
        (loss / self.size).backward()
        if self.clip:
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def answer(self) -> Any:
        self.model.eval()
        with self.torch.inference_mode():
            return self.model.model(carry=self.fresh, batch=self.batch)[1]["logits"].argmax(-1).cpu()


def measure(which: str, clone: str, base: dict[str, Any], variants: Sequence[str], repeats: int) -> dict[str, Any]:
    """Times of both sides, in turns: seconds by what was done and by whom."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other side needs memory too
    published(which, Path(clone).resolve())  # what cannot be imported is said at once
    ours = bench_step.contender(config.parse(base), "", repeats)
    system, batch = ours.system, ours.batch
    weights = Weights(ours.state.params, ours.state.fixed, ours.state.table)
    bound = system.model.bind(jax.tree.map(jnp.copy, weights), ours.L)  # the step gives its state away
    cycles = np.int32(ours.H if system.experiment.arch.supervision == "terminal" else 1)
    unrolled = jax.jit(slots.unrolled).lower(bound, batch.inputs, batch.puzzle_identifiers, cycles).compile()
    losses: dict[str, float] = {}

    def our_step() -> None:
        ours.state, sums, _ = ours.run(ours.state, batch)
        losses.setdefault("ours", float(sums.loss))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        peers = {variant: Peer(which, Path(clone).resolve(), ours, variant) for variant in variants}

        def their_step(name: str, peer: Peer) -> None:
            losses.setdefault(name, peer.step())
        jobs: dict[str, dict[str, Callable[[], Any]]] = {
            "step": {"ours": our_step} | {n: lambda n=n, p=p: their_step(n, p) for n, p in peers.items()},
            "answer": {"ours": lambda: np.asarray(unrolled(bound, batch.inputs, batch.puzzle_identifiers, cycles))}
            | {n: p.answer for n, p in peers.items()}}
        seconds: dict[str, dict[str, list[float]]] = {job: {name: [] for name in sides} for job, sides in jobs.items()}
        for job, sides in jobs.items():
            for turn in range(repeats + 1):
                for name, run in sides.items():
                    begun = time.perf_counter()
                    run()
                    if turn:  # the first is for compiling and for touching memory
                        seconds[job][name].append(time.perf_counter() - begun)
    e, some = system.experiment, next(iter(peers.values()))
    return {"system": which, "config": PEERS[which][0], "batch": e.global_batch_size, "H": ours.H, "L": ours.L,
            "dtype": e.arch.forward_dtype, "optimizer": some.optimizer, "torch": some.torch.__version__,
            "device": distributed.device_description(), "versions": distributed.versions(), "losses": losses,
            "seconds": seconds}


def show(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for r in results:
        for job, sides in r["seconds"].items():
            for name, times in sides.items():
                ratios = [a / b for a, b in zip(sides["ours"], times)]
                rows.append([f"{r['config']} {job}, batch {r['batch']}, H {r['H']}, L {r['L']}, {r['dtype']}", name,
                             f"{1e3 * statistics.median(times):.1f}", f"{statistics.median(ratios):.2f}",
                             f"{min(ratios):.2f} to {max(ratios):.2f}",
                             f"{r['losses'][name]:.6g}" if job == "step" else ""])
    first = results[0]
    return "\n".join([
        f"{first['device']}; PyTorch {first['torch']} with {first['optimizer']}; ratio: our time over theirs",
        table(["", "by", "median ms", "ratio", "spread", "first loss"], rows, left=(0, 1))])


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments.Parser("python -m trm_jax bench peers", __doc__)
    for which, (name, *_) in PEERS.items():
        parser.add_argument(f"--{which}", type=arguments.text, metavar="CLONE",
                            help=f"folder with the published code of {which.upper()}, to be timed with {name}")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="in the config; repeatable")
    parser.add_argument("--variants", type=arguments.listed(arguments.one_of(*VARIANTS)), default=("eager", "core"),
                        help=f"of theirs: {', '.join(VARIANTS)}; the last two are what of the network torch.compile "
                        "compiles, which needs a compiler (eager,core)")
    parser.add_argument("--repeats", type=arguments.integer(1, 100_000), default=5, help="turns (%(default)s)")
    arguments.add_result(parser)
    args = parser.parse_args(argv)
    clones = {which: getattr(args, which) for which in PEERS if getattr(args, which)}
    if not clones:
        parser.error("--rsm or --trm: give a clone of the published code, or both")

    def run() -> None:
        results = []
        for which, clone in clones.items():
            base = config.to_json(config.load(PEERS[which][0], args.set))
            # A process for each: the clones have modules of one name.
            results.append(alone(measure, which, clone, base, args.variants, args.repeats))
        files.give(args, {"peers": results}, show(results))
    return guarded(run)
