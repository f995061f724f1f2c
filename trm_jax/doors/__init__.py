"""The names under which commands were first published: `python -m trm_jax.solve` is `python -m trm_jax solve`.

The folder is on the package's search path (trm_jax/__init__.py). Nothing imports these modules.
"""
