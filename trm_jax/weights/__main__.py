"""python -m trm_jax.weights: another name of python -m trm_jax weights."""

import sys

from trm_jax.weights.command import main

sys.exit(main())
