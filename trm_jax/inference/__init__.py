"""Test-time compute, and what people ask it through: engine, solvers, their command."""

from trm_jax.inference import arc_solver as arc_solver  # which Solver.of then knows
