"""TRM-Att on ARC-AGI-2: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871), table 5.

Variants (--config=experiments/trm_att_arc2.py:NAME)

    (none)   trm_att_arc1 on ARC-AGI-2's training and evaluation tasks (of the latter the demonstrations only) and
             ConceptARC: 1,280 tasks, 100,000 epochs, 725,651 steps of 768.
             Paper: pass@2 7.8 % on the 120 evaluation tasks, 7M parameters, about 3 days on four H100. Third parties
             had 3 to 10 %. Not repeated by us yet.
    adapt    for python -m trm_jax adapt: "Test-time Adaptation of Tiny Recursive Models" (arXiv:2511.02886), which
             goes on from a network of this recipe on the tasks of the competition: 12,500 steps of 384, at first of the
             tasks' rows alone. Rates as in its code (config/cfg_posttrain.yaml of TrelisResearch/TinyRecursiveModels at
             28aa84e). Paper: 6.67 % on ARC-AGI-2's semi-private tasks. Not repeated by us.
    quick    that of trm_att_arc1, tasks and all.

376 of the 400 evaluation tasks of ARC-AGI-1 are training tasks of ARC-AGI-2: a model of this recipe has no score on
ARC-AGI-1.

Data, made where they are missing (from ARC-AGI-2 in Kaggle's form, in
kaggle/, with the subsets named training2 and evaluation2)

    python -m trm_jax data arc --json_dir kaggle --subsets training2,evaluation2,concept --test_subset evaluation2
        --num_aug 1000 --out data/arc2-concept-aug-1000
"""

import pathlib

from trm_jax import config as config_lib

VARIANTS = ("", "adapt", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_att_arc2 has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_att_arc1.py")).get_config(
        variant if variant == "quick" else "")
    if variant != "quick":
        c.data.path = "data/arc2-concept-aug-1000"
        c.data.make.update(subsets=("training2", "evaluation2", "concept"), test_subset="evaluation2")
        c.total_steps = 100_000 * 5573 // 768  # 100,000 epochs of 1,280 tasks with 5,573 training pairs
    if variant == "adapt":
        c.total_steps = 12_500
        c.global_batch_size = 384
        c.lr = 0.7e-4
        c.puzzle_emb_lr = 0.7e-2
        c.rows_only = 0.25
        c.eval.interval_steps = 3125
    return c
