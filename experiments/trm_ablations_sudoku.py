"""Ablations of "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871): every row of tables 1 to 3.

Variants (--config=experiments/trm_ablations_sudoku.py:NAME, and NAME:quick at the size of trm_mlp_sudoku:quick)

    Table 1: one change of trm_mlp_sudoku each (87.4 %); its first rows are hrm_sudoku and trm_mlp_sudoku. Exact % on
    the 422,786 test puzzles of Sudoku-Extreme, effective depth T (n + 1) layers, parameters.

    act                86.1   42    5M   ACT with q_continue, which takes a second pass
    separate           82.4   42   10M   networks of their own for f_H and f_L
    no_ema             79.9   42    5M
    layers4_n3         79.5   48   10M   four layers, n 3
    attention          74.7   42    7M   trm_att_sudoku
    T2_n2              73.7   12    5M
    one_step           56.5   42    5M   gradient through the last f_L and the last f_H only

    Table 2: the number of latents (two: 87.4 %).

    multi_z            77.6   42    5M   seven: n reasoning latents
    single_z           71.9   42    5M   one

    Table 3: T and n. TRM with n 2k and two layers, HRM with n k and four layers in each network. OOM: the paper's GPU
    had too little memory.

    trm_k1_T1          63.2    7        hrm_k1_T1          46.4    9
    trm_k2_T2          81.9   20        hrm_k2_T2          55.0   24    hrm_sudoku
    trm_k3_T3          87.4   42        hrm_k3_T3          61.6   48    trm_k3_T3 is trm_mlp_sudoku
    trm_k4_T4          84.2   72        hrm_k4_T4          59.5   80
    trm_k6_T3          OOM    78        hrm_k6_T3          62.3   84
    trm_k3_T6          85.8   84        hrm_k3_T6          58.8   96
    trm_k6_T6          OOM   156        hrm_k6_T6          57.5  168

    Ideas that failed, of which the paper gives no figures ("Ideas that failed"):

    no_act             every puzzle takes all 16 steps
    tied_head          the logits come from the token embedding
    last_4_calls       gradient through the last k = 4 of the n + 1 calls

Hardware: one L40S, generally under 36 hours each. None of them repeated by us yet.
In NAME:quick, n is to the published n as trm_mlp_sudoku:quick's 4 is to 6 (of HRM: as it is), and layers are halved;
those of HRM are on hrm_sudoku:quick's puzzles.

single_z:quick is on the 4x4 puzzles of eqr_sudoku:quick, at 1e-3: 89.0 % exact of 200 test puzzles at 16 steps, seed 0.

Data: as trm_mlp_sudoku; single_z:quick as eqr_sudoku.
"""

import pathlib

from trm_jax import config as config_lib


def act(c):
    c.arch.no_ACT_continue = False


def separate(c):
    c.arch.H_layers = c.arch.L_layers


def no_ema(c):
    c.ema = False


def layers4_n3(c):
    c.arch.L_layers *= 2
    c.arch.L_cycles //= 2


def attention(c):
    c.arch.mlp_t = False
    c.arch.pos_encodings = "rope"
    c.arch.mixer_norm_axis = "feature"
    c.arch.mixer_hidden_size = 0


def T2_n2(c):
    c.arch.H_cycles = 2
    c.arch.L_cycles = 2


def one_step(c):
    c.arch.grad_calls = 2


def multi_z(c):
    c.arch.recursion = "multi_z"


def single_z(c):
    c.arch.recursion = "single_z"


def no_act(c):
    c.arch.halting_head = False
    c.arch.halt_exploration_prob = 0.0


def tied_head(c):
    c.arch.tie_head = True


def last_4_calls(c):
    c.arch.grad_calls = 4


CHANGES = {change.__name__: change for change in (act, separate, no_ema, layers4_n3, attention, T2_n2, one_step,
                                                  multi_z, single_z, no_act, tied_head, last_4_calls)}
TABLE_3 = {f"{system}_k{k}_T{T}": (system, k, T) for system in ("trm", "hrm")
           for k, T in ((1, 1), (2, 2), (3, 3), (4, 4), (6, 3), (3, 6), (6, 6))}
NAMES = (*CHANGES, *TABLE_3)
VARIANTS = (*NAMES, *(f"{name}:quick" for name in NAMES))


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_ablations_sudoku has no variant {variant!r}; there are {', '.join(NAMES)}, each also "
                         "with :quick after it")
    name, _, size = variant.partition(":")
    system, k, T = TABLE_3.get(name, ("trm", 0, 0))
    file = {"trm": "trm_mlp_sudoku.py", "hrm": "hrm_sudoku.py"}[system]
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name(file)).get_config(size)
    if k:
        c.arch.H_cycles = T
        c.arch.L_cycles = k if system == "hrm" else round(c.arch.L_cycles * k / 3)
    else:
        CHANGES[name](c)
    if variant == "single_z:quick":
        config_lib.experiment_file(pathlib.Path(__file__).with_name("eqr_sudoku.py")).small(c)
        c.lr = 1e-3
    return c
