"""python -m trm_jax.models.pretrained: the name under which the import of published weights was first known."""

import runpy

if __name__ == "__main__":
    runpy.run_module("trm_jax.weights.published", run_name="__main__", alter_sys=True)
