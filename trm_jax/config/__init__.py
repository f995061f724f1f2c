"""What a run is: every field with its meaning, what is allowed in it, and where recipes are found.

An experiment file builds an `ml_collections.ConfigDict` from `default()`; `parse` turns it into frozen dataclasses
and refuses, by name, what cannot work. Behind this door nobody reads a ConfigDict.
"""

from trm_jax.config.fields import (
    MAKE_FIELDS,
    Arch,
    Checkpoint,
    ConfigError,
    Data,
    Deepen,
    Eval,
    Experiment,
    Log,
    Loss,
    Make,
    make_fields,
    read_options,
)
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
from trm_jax.config.recipes import experiment_file, from_file, load, run_name, shipped
from trm_jax.config.rules import draws, no_cudnn

__all__ = ["MAKE_FIELDS", "MAY_CHANGE", "Arch", "Checkpoint", "ConfigError", "Data", "Deepen", "Eval", "Experiment",
           "Log", "Loss", "Make", "default", "differences", "draws", "experiment_file", "from_file", "load",
           "make_fields", "no_cudnn", "parse", "read_fields", "read_options", "run_name", "shipped", "to_config_dict",
           "to_json", "with_fields"]
