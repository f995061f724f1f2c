"""TRM-Att on ARC-AGI-2: "Less is More: Recursive Reasoning with Tiny Networks" (arXiv:2510.04871), table 5.

Variants (--config=experiments/trm_att_arc2.py:NAME)

    (none)   trm_att_arc1 on ARC-AGI-2's training and evaluation tasks (of the latter the demonstrations only) and
             ConceptARC: 1,280 tasks, 100,000 epochs, 725,651 steps of 768.
             Paper: pass@2 7.8 % on the 120 evaluation tasks, 7M parameters, about 3 days on four H100. Third parties
             had 3 to 10 %. Not repeated by us yet.
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

VARIANTS = ("", "quick")


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"trm_att_arc2 has no variant {variant!r}; there are "
                         f"{', '.join(v for v in VARIANTS if v)} and the default, without a name")
    c = config_lib.experiment_file(pathlib.Path(__file__).with_name("trm_att_arc1.py")).get_config(variant)
    if variant != "quick":
        c.data.path = "data/arc2-concept-aug-1000"
        c.data.make.update(subsets=("training2", "evaluation2", "concept"), test_subset="evaluation2")
        c.total_steps = 100_000 * 5573 // 768  # 100,000 epochs of 1,280 tasks with 5,573 training pairs
    return c
