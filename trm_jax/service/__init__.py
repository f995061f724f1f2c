"""Answers over HTTP: `python -m trm_jax serve`."""
