"""Recursive reasoning models in JAX: RSM today, TRM and HRM next, from one network and one set of recursions."""

__version__ = "0.1.0"
