"""Steps by L: the next one is compiled while training goes on, and a second start compiles none."""

import jax
import numpy as np
import pytest

from tests import tiny
from trm_jax.runtime import distributed
from trm_jax.training import step as step_lib
from trm_jax.training.supervision import Batch

GROWS = {"arch": {"L_cycles": 1}, "total_steps": 10, "curriculum_L_milestones": [30.0, 60.0],
         "curriculum_L_to_add": [1, 2]}


@pytest.fixture
def parts(tmp_path):
    e = tiny.experiment(tiny.make_dataset(tmp_path / "data"), global_batch_size=8, **GROWS)
    system, mesh = tiny.system_of(e), distributed.data_mesh()
    tokens = np.ones((8, 16), np.int32)
    batch = Batch(**distributed.put_batch(mesh, {"inputs": tokens, "labels": tokens,
                                                 "puzzle_identifiers": np.zeros(8, np.int32)}))
    return system, mesh, batch


def test_the_next_step_is_compiled_ahead_and_is_the_same(parts):
    system, mesh, batch = parts
    notes, found = [], {}
    with step_lib.Compiler(system, mesh, notes.append, ahead=True) as ahead:
        now = step_lib.Compiler(system, mesh, lambda _: None)
        for compiled in (ahead, now):
            state = step_lib.place(system, mesh)
            for L in (1, 2, 4, 4):
                state, *seen = compiled(L, state, batch)(state, batch)
            found[compiled] = jax.device_get((state.params, seen))
    jax.tree.map(np.testing.assert_array_equal, found[ahead], found[now])
    assert [note.split(" in ")[0] for note in notes] == [f"compiled the step for L = {L}" for L in (1, 2, 4)]
    assert "waited" not in notes[0] and all("of which training waited" in note for note in notes[1:])


def test_a_second_start_compiles_nothing(parts, tmp_path):
    system, mesh, batch = parts
    events: list[str] = []
    kept = jax.config.jax_compilation_cache_dir
    distributed.enable_compilation_cache(tmp_path / "compiled")
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    try:
        counts = []
        for _ in range(2):
            jax.clear_caches()
            compiled, state = step_lib.Compiler(system, mesh, lambda _: None), step_lib.place(system, mesh)
            events.clear()
            for L in (1, 2, 4):
                compiled(L, state, batch)
            counts.append((events.count("/jax/compilation_cache/cache_hits"),
                           events.count("/jax/compilation_cache/cache_misses")))
        assert counts[0] == (0, 3) and counts[1] == (3, 0)
    finally:
        jax.monitoring.clear_event_listeners()
        distributed.enable_compilation_cache(kept or "")
