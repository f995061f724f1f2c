"""Strict by default: eight simulated devices, no silent promotion of ranks or dtypes, warnings are errors."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Tests compile much and compute little: LLVM's optimisations would cost more than they save.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
# Subprocesses of tests inherit these, so that a program is compiled once for all of them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Files whose tests train, compile much or start processes; all others are marked fast.
NOT_FAST = {f"test_{name}.py" for name in (
    "adapt", "arc_runs", "checkpoints", "compare", "deep_supervision", "distributed", "experiments", "family", "golden",
    "inference", "interruptions", "maze_figures", "network", "processes", "run_folder", "scaling", "slurm", "solve",
    "train", "updates", "watch", "wheel")}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name not in NOT_FAST:
            item.add_marker(pytest.mark.fast)


@pytest.fixture(scope="module")
def window():
    """A headless browser; without Chromium its tests are skipped."""
    from tests import browser
    if not (browser.CHROMIUM and browser.DRIVER):
        pytest.skip("no Chromium: install the packages chromium and chromium-driver")
    opened = browser.Browser()
    yield opened
    opened.close()
