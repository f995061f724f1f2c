"""What a run is: every field with its meaning, what is allowed in it, and where recipes are found.

An experiment file builds an `ml_collections.ConfigDict` from `default()`; `parse` turns it into frozen dataclasses
and refuses, by name, what cannot work. Behind this door nobody reads a ConfigDict.
"""

from trm_jax.config.fields import Arch, Checkpoint, ConfigError, Data, Deepen, Eval, Experiment, Log, Loss
from trm_jax.config.parser import (
           MAY_CHANGE,
           default,
           differences,
           parse,
           read_fields,
           to_config_dict,
           to_json,
           with_fields,
)
from trm_jax.config.recipes import experiment_file, from_file
from trm_jax.config.rules import no_cudnn

__all__ = ["MAY_CHANGE", "Arch", "Checkpoint", "ConfigError", "Data", "Deepen", "Eval", "Experiment", "Log", "Loss",
           "default", "differences", "experiment_file", "from_file", "no_cudnn", "parse", "read_fields",
           "to_config_dict", "to_json", "with_fields"]
