"""The door for configs: every field with its default and meaning, and what is allowed in it.

An experiment file builds an `ml_collections.ConfigDict` from `default()`; `parse` turns it into frozen
dataclasses and refuses, by name, what cannot work. Behind the door nobody reads a ConfigDict.
Field names are those of the published code where there is one, so that a published recipe can be typed in.
"""

from __future__ import annotations

import ast
import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any, Literal

from trm_jax.runtime.errors import UserError

Axis = Literal["feature", "token"]


class ConfigError(UserError):
    """A config that cannot work; the message lists every fault by field, value and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Loss:
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"] = "stablemax_cross_entropy"


@dataclasses.dataclass(frozen=True)
class Arch:
    """The network and how often it is applied."""

    loss: Loss = Loss()
    recursion: Literal["y_z", "single_z", "multi_z", "direct"] = "y_z"  # see recursion.py
    # How a latent begins and moves: see models/updates.py.
    start: Literal["fixed", "random"] = "fixed"  # two vectors for all; or drawn per puzzle, token and feature (EqR)
    start_std: float = 1.0  # of random starts (EqR 1, FPRM 6)
    update: Literal["replace", "damped", "solver", "gate"] = "replace"
    update_share: float = 0.95  # damped: share of the new state (EqR)
    update_noise: float = 0.0  # std of the noise that every call adds in training (EqR 0.01)
    update_noise_test: float = 0.0  # the same when answering
    solver_patience: int = 5  # solver: calls without a smaller residual until the step size shrinks (FPRM)
    solver_decay: float = 0.9  # by this factor, in training
    solver_decay_test: float = 0.99  # the same when answering
    solver_min_size: float = 1e-3  # an example whose step size is smaller counts as converged
    H_cycles: int = 2  # outer cycles at the first step; grows by curriculum_milestones
    L_cycles: int = 2  # inner cycles per outer cycle at the first step; grows by curriculum_L_milestones
    H_layers: int = 0  # blocks in a second network f_H that updates the answer (HRM); 0: one network does both
    L_layers: int = 1  # blocks in the core
    # pre_norm: h = a1 h + b1 mix(norm(h)), fed by a2 state + b2 injection; a1, a2 trained per feature (FPRM)
    block: Literal["post_norm", "pre_norm"] = "post_norm"
    output_norm: bool = False  # pre_norm: a norm after the last block
    conv: Literal["none", "grid3", "causal4"] = "none"  # depthwise convolution of the state before the first block
    hidden_size: int = 512
    num_heads: int = 8  # attention only
    expansion: float = 4.0  # SwiGLU: hidden = 256 * ceil(round(expansion * width * 2/3) / 256)
    mlp_hidden_size: int = 0  # 0: by expansion. Otherwise the channel SwiGLU's hidden size itself
    mixer_hidden_size: int = 0  # 0: by expansion. Otherwise the token-mixing SwiGLU's hidden size itself
    mlp_t: bool = True  # tokens are mixed by a SwiGLU over the sequence; False: by attention
    # Tokens are mixed through the units of the puzzle's rules (rows, columns, boxes), the same for all of them; mlp_t
    # then says nothing, and mixer_hidden_size is of one kind of unit. With candidates a token is not a cell but one of
    # the values that it may hold. Ours; see models/units.py.
    units: bool = False
    candidates: bool = False
    # auto: of long sequences the scores are never all alive at once, by cuDNN's fused attention where it can be had
    # (NVIDIA GPUs, bfloat16), else block by block. See models/attention.py.
    attention: Literal["auto", "whole", "blocks", "cudnn"] = "auto"
    pos_encodings: Literal["none", "rope", "learned"] = "none"
    rope_theta: float = 10000.0
    rope_columns: int = 0  # 0: rotary positions count along the flattened grid. Otherwise its width: row and column
    rms_norm_eps: float = 1e-5
    mixer_norm_axis: Axis = "feature"  # axis of the norm after token mixing: RSM "feature", TRM's MLP-T "token"
    mlp_norm_axis: Axis = "feature"  # axis of the norm after the channel SwiGLU
    puzzle_emb_ndim: int = 512  # width of a row of the puzzle table; 0: no prefix at all
    puzzle_emb_len: int = 16  # prefix positions; 0: ceil(puzzle_emb_ndim / hidden_size)
    tie_head: bool = True  # logits from the token embedding (RSM); False: a head of its own (HRM, TRM)
    halting_head: bool = False  # q_halt, q_continue from the first position (HRM, TRM)
    forward_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # activations; parameters and losses stay float32
    # bfloat16: the operands of the blocks' products with weights are rounded to it and their sums stay float32. Faster
    # where there is a unit for it, not slower elsewhere (models/bfloat16.py); activations are as forward_dtype says.
    matmul_precision: Literal["float32", "bfloat16"] = "float32"
    remat: bool = True  # the backward pass computes a core call anew instead of keeping what is inside of it
    grad_cycles: int = 1  # gradient through so many last outer cycles (FPRM: all)
    grad_calls: int = 0  # gradient through so many last core calls of the last cycle (HRM: 2); 0: all L_cycles + 1
    supervision: Literal["terminal", "deep"] = "terminal"  # one loss per puzzle (RSM), or several with a carry
    halt_by: Literal["head", "residual"] = "head"  # who says that a puzzle is done: q_halt, or a residual that is small
    halt_residual: float = 0.1  # under this it is
    # Terminal supervision.
    prob_detach_prev_H: float = 0.99  # probability that the last but one outer update is detached too
    # Deep supervision.
    halt_max_steps: int = 16  # supervision steps on a puzzle at most; without a halting head, always
    halt_exploration_prob: float = 0.1  # probability of not halting before a step drawn from 2 .. halt_max_steps
    step_loss_decay: float = 1.0  # supervision step t weighs its token loss by step_loss_decay^(t - 1) (CGAR: 0.7)
    test_H_cycles: int = 0  # outer cycles of a supervision step when answering; 0: H_cycles
    no_ACT_continue: bool = True  # halt if q_halt > 0 (TRM). False: if q_halt > q_continue, which is trained too (HRM)

    @property
    def product_kind(self) -> str:
        """Type of the operands of its products, as XLA writes it."""
        return "bf16" if "bfloat16" in (self.forward_dtype, self.matmul_precision) else "f32"

    @property
    def mixer(self) -> str:
        """What mixes tokens, by its name in models/layers.py."""
        return "units" if self.units else "mlp" if self.mlp_t else "attention"


@dataclasses.dataclass(frozen=True)
class Deepen:
    """What brings states deeper than H into training. Ours, off in the published recipe."""

    carry_share: float = 0.0  # share of the batch's slots that may keep puzzle and latents for the next step
    carry_keep_prob: float = 0.9  # probability that such a slot does keep them
    # Release by correctness: it keeps them while its answer is wrong, for so many steps at most, and with
    # carry_keep_prob (then a small one) when it is right. 0: with carry_keep_prob, right or wrong.
    carry_steps: int = 0
    tail_prob: float = 0.0  # probability of a step whose H is drawn log-uniformly from H to tail_max_H
    tail_max_H: int = 64


@dataclasses.dataclass(frozen=True)
class Make:
    """How the dataset folder is made where it is missing (data/making.py): the options of `python -m trm_jax data`."""

    # generate: new puzzles. hub: the official files. csv: files of your own. arc_json: ARC's tasks. "": not by us.
    source: Literal["", "generate", "hub", "csv", "arc_json"] = ""
    train: int = 0  # training puzzles to generate, or to keep of a file (a seeded sample); 0: the usual number, or all
    test: int = 0
    seed: int = 0  # of everything random here
    box: tuple[int, ...] = (3, 3)  # Sudoku: rows and columns of a box
    clues: int = 0  # Sudoku, generated: clues of a puzzle; 0: minimal, no clue can be spared
    size: tuple[int, ...] = (30, 30)  # maze: rows and columns
    smallest: int = 0  # maze: sides from this to `size`; 0: all are of that size
    min_length: int = -1  # maze, generated: the shortest path is longer. -1: than 110 at 30x30, and as much a cell
    single_path: bool = False  # maze, generated: with only one shortest path
    options: tuple[str, ...] = ()  # other puzzles: NAME=VALUE, options of the domain and of its generator
    csv: str = ""  # training file: source,question,answer,rating, plain or .gz
    test_csv: str = ""
    min_rating: int = 0  # csv and hub: keep puzzles that are rated so or more
    reveal: tuple[str, ...] = ()  # csv, Sudoku: easier copies, SOURCE:SHARE:MOST:COPIES each (sources.reveal)
    num_aug: int = 0  # csv and hub, Sudoku: shuffles beside each training puzzle. ARC: symmetries beside each task
    json_dir: str = ""  # ARC: folder of PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json
    prefix: str = "arc-agi"
    subsets: tuple[str, ...] = ()  # ARC: whose tasks are learned from
    test_subset: str = ""  # ARC: one of them, whose test pairs are the test
    no_test_solutions: bool = False  # ARC: the test subset has no file of solutions


# source -> puzzle -> the fields that mean something there.
MAKE_FIELDS = {
    "generate": {"sudoku": ("train", "test", "seed", "box", "clues"),
                 "maze": ("train", "test", "seed", "size", "smallest", "min_length", "single_path")},
    "hub": {"sudoku": ("train", "test", "seed", "box", "min_rating", "num_aug"),
            "maze": ("train", "test", "seed", "size", "smallest", "min_rating")},
    "csv": {"sudoku": ("csv", "test_csv", "train", "test", "seed", "box", "min_rating", "reveal", "num_aug"),
            "maze": ("csv", "test_csv", "train", "test", "seed", "size", "smallest", "min_rating")},
    "arc_json": {"arc": ("json_dir", "prefix", "subsets", "test_subset", "no_test_solutions", "num_aug", "seed")}}
_OTHERS = {"generate": ("train", "test", "seed", "options"),
           "csv": ("csv", "test_csv", "train", "test", "seed", "options", "min_rating", "num_aug")}


def make_fields(source: str, puzzle: str) -> tuple[str, ...]:
    """The fields of `Make` that mean something; none where the puzzle cannot be had from this source."""
    if any(puzzle in of for of in MAKE_FIELDS.values()):
        return MAKE_FIELDS[source].get(puzzle, ())
    return _OTHERS.get(source, ())


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """("size=4",) -> {"size": 4}. Raises ConfigError."""
    found = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"data.make.options: {text!r} is not NAME=VALUE")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


@dataclasses.dataclass(frozen=True)
class Data:
    puzzle: str = "sudoku"  # the domain, by name: sudoku, maze, arc, or another (see puzzles/domain.py)
    path: str = "data/sudoku"  # dataset folder, as `python -m trm_jax data` writes it
    make: Make = Make()
    augment: bool = False  # a fresh symmetry of every training puzzle each time it is drawn; ARC's are in the folder
    # fixed: the labels of the dataset. random_path: of every training maze a shortest path, drawn uniformly each time
    # it is drawn; exact match then means little, and the best checkpoint is the one with most shortest paths.
    labels: Literal["fixed", "random_path"] = "fixed"
    exchanged: bool = False  # a run may go on although other puzzles lie at `path` than those it began with

    @property
    def how_to_make(self) -> str:
        """The command that makes the folder at `path`."""
        m, words = self.make, ["python", "-m", "trm_jax", "data", self.puzzle]
        if not m.source:
            return shlex.join([*words, "--help"])
        if m.source in ("generate", "hub"):
            words.append(f"--{m.source}")
        for name in make_fields(m.source, self.puzzle):
            value = getattr(m, name)
            if name == "options":
                words += [f"--{option}" for option in value]
                continue
            if value == getattr(Make, name):
                continue
            if isinstance(value, tuple):
                value = ("x" if name in ("box", "size") else ",").join(map(str, value))
            words += [f"--{name}"] + ([] if value is True else [str(value)])
        return shlex.join([*words, "--out", self.path])


@dataclasses.dataclass(frozen=True)
class Eval:
    # Depths at which answers are scored, all in one unroll: in outer cycles with terminal supervision, in
    # supervision steps (of H_cycles outer cycles each) with deep supervision.
    H_test: tuple[int, ...] = (16,)
    L_test: tuple[int, ...] = ()  # inner cycles; one unroll each. (): the L of the last training step
    interval_steps: int = 0  # 0: only after the last step
    at_start: bool = False  # before the first step too: what the weights of init_from can do
    batch_size: int = 512
    max_examples: int = 0  # 0: the whole test set; otherwise a seeded sample of this many
    settled_cycles: int = 4  # settled: the answer has not changed for this many units of H_test
    stop_halted: bool = False  # a puzzle's answer stays as it is once the halting head wants to stop
    # Besides, answer each puzzle as a solver would (see inference.py): to the last of H_test, done when it has settled
    # or the rules accept it, and tried again if they do not, up to so many times in all. 0: do not.
    restarts: int = 0
    vary: Literal["symmetry", "start", "cycle", "draw"] = "symmetry"  # what tells restarts apart
    sigma: float = 0.3  # standard deviation of the noise (vary: start, cycle)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    interval_steps: int = 1000  # also saved after the last step
    keep_last: int = 2
    keep_best: int = 1


@dataclasses.dataclass(frozen=True)
class Log:
    interval_steps: int = 50
    # Besides metrics.jsonl, which is always written. The last three are other people's services, each with its own
    # package: see runtime/trackers.py.
    writers: tuple[Literal["tensorboard", "wandb", "mlflow", "comet"], ...] = ("tensorboard",)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that a run is. Groups with a lower-case name below are sections of the config."""

    arch: Arch = Arch()
    deepen: Deepen = Deepen()
    data: Data = Data()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()

    init_from: str = ""  # weights that training starts from: a name, a file or the folder of a run; "": at random
    seed: int = 0
    global_batch_size: int = 512
    epochs: int = 2  # length of the run in passes over the groups of the training set
    total_steps: int = 0  # length of the run in optimiser steps; 0: from epochs

    optimizer: Literal["adam_atan2", "adamw"] = "adam_atan2"
    lr: float = 1e-3
    lr_min_ratio: float = 0.02  # the cosine ends at lr * lr_min_ratio
    lr_warmup_steps: int = 2000
    beta1: float = 0.8
    beta2: float = 0.9
    adam_eps: float = 1e-8  # AdamW only
    weight_decay: float = 0.1
    grad_clip_norm: float = 1.0  # 0: no clipping
    puzzle_emb_lr: float = 1e-4  # sign-SGD of the puzzle table
    puzzle_emb_weight_decay: float = 1.0
    rows_only: float = 0.0  # share of the steps, from the first on, that train the puzzle table alone
    ema: bool = True  # evaluate an exponential moving average of the parameters
    ema_rate: float = 0.999

    curriculum_milestones: tuple[float, ...] = ()  # percent of all steps at which H grows
    curriculum_heads_to_add: tuple[int, ...] = ()  # by how much
    curriculum_L_milestones: tuple[float, ...] = ()  # percent of all steps at which L grows
    curriculum_L_to_add: tuple[int, ...] = ()
    transition_lr_warmup_steps: int = 0  # after each growth the learning rate ramps from 0 over this many steps
    optimizer_reset_scale: float = 1.0  # the optimiser's moments are multiplied by this at each growth


