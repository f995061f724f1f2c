"""python -m trm_jax.weights: another name of python -m trm_jax weights."""

import sys

from trm_jax.weights.weights_file import main

sys.exit(main())
