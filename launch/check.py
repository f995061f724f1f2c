"""python launch/check.py CONFIG DEVICES [FLAGS OF trm_jax.main]: exit 2 and one line if the run would be refused.

For before a job waits in a queue: the config, its fields, and whether the devices divide the batch.
"""

import sys
import types

from trm_jax import config, main
from trm_jax.runtime import distributed, errors


def check() -> None:
    name, devices, *flags = sys.argv[1:]
    experiment = config.load(name, main.split_fields(flags)[1])
    distributed.check_batch(experiment.global_batch_size, types.SimpleNamespace(size=int(devices)), 1)


if __name__ == "__main__":
    sys.exit(errors.guarded(check))
