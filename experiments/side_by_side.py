"""Systems and switches on 6x6 Sudokus, at one small size and with one set of rates, for `python -m trm_jax compare`.

Variants (--config=experiments/side_by_side.py:NAME); D 48, batches of 32, learning rate 2e-3, hidden sizes 96 and 48

    What each switch is worth: one change each of `rsm`.

    rsm           rsm_sudoku:quick: a quarter of the slots carries its latents on, with probability 0.9
    no_carry      the published recipe: no slot does
    release       a carried slot keeps its puzzle while its answer is wrong, 16 steps at most, with probability 0.1 when
                  it is right
    H2            the carry instead of the warm-up: H stays 2
    pre_norm      blocks with learned residual scales (FPRM)
    damped        5 % of the state stays (EqR)
    random        random starts (EqR)
    gate          the content gate (InfiLoop)

    Systems, each with the switches of its `:quick`. Not measured yet.

    trm_mlp, trm_att, single_z, multi_z, hrm, direct, eqr, cgar, fprm

Figures: README.md here. Data, made where they are missing

    python -m trm_jax data sudoku --generate --box 2x3 --clues 12 --train 20000 --test 1000 --out data/sudoku-6x6
"""

import pathlib

from trm_jax import config as config_lib


def release(c):
    c.deepen.carry_steps = 16
    c.deepen.carry_keep_prob = 0.1


def no_carry(c):
    c.deepen.carry_share = 0.0


def H2(c):
    c.curriculum_milestones = c.curriculum_heads_to_add = ()


def pre_norm(c):
    c.arch.block = "pre_norm"
    c.arch.output_norm = True


def damped(c):
    c.arch.update = "damped"


def random(c):
    c.arch.start = "random"


def gate(c):
    c.arch.update = "gate"


SWITCHES = {change.__name__: change for change in (no_carry, release, H2, pre_norm, damped, random, gate)}
SYSTEMS = {"trm_mlp": "trm_mlp_sudoku:quick", "trm_att": "trm_att_sudoku:quick", "hrm": "hrm_sudoku:quick",
           "single_z": "trm_ablations_sudoku:single_z:quick", "multi_z": "trm_ablations_sudoku:multi_z:quick",
           "direct": "direct_sudoku:quick", "eqr": "eqr_sudoku:quick", "cgar": "cgar_sudoku:quick",
           "fprm": "fprm_sudoku:quick"}
VARIANTS = ("rsm", *SWITCHES, *SYSTEMS)


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"side_by_side has no variant {variant!r}; there are {', '.join(VARIANTS)}")
    file, _, size = SYSTEMS.get(variant, "rsm_sudoku:quick").partition(":")
    rsm = config_lib.experiment_file(pathlib.Path(__file__).with_name("rsm_sudoku.py")).get_config("quick")
    c = rsm
    if variant in SYSTEMS:
        c = config_lib.experiment_file(pathlib.Path(__file__).with_name(f"{file}.py")).get_config(size)
        for name in ("global_batch_size", "optimizer", "lr", "lr_min_ratio", "lr_warmup_steps", "beta1", "beta2",
                     "weight_decay", "grad_clip_norm", "ema", "ema_rate"):
            c[name] = rsm[name]
        c.arch.pos_encodings, c.arch.rope_columns = ("none", 0) if c.arch.mlp_t else ("rope", 6)
    c.data = rsm.data
    c.data.path = "data/sudoku-6x6"
    c.data.make.update(box=(2, 3), clues=12, train=20_000, test=1000)
    c.arch.hidden_size = 48
    c.arch.mlp_hidden_size = 96
    c.arch.mixer_hidden_size = 48 if c.arch.mlp_t else 0
    c.arch.puzzle_emb_ndim = 48 if c.arch.puzzle_emb_ndim else 0
    if variant not in SYSTEMS:
        c.eval.H_test = (4, 16, 64, 256)
        SWITCHES.get(variant, lambda c: None)(c)
    c.total_steps = 600
    c.eval.restarts = 8
    c.eval.batch_size = 100
    c.eval.max_examples = 0
    return c
