"""Dataset folders (`store`), where they come from (`sources`) and the input pipeline (`pipeline`).

`python -m trm_jax data --help` builds and imports folders.
"""
