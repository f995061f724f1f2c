"""The peaks of this machine: numbers that can be, and the command that prints them."""

import json

from trm_jax.reports import bench
from trm_jax.runtime import peaks


def test_peaks_are_measured_and_kept(tmp_path, capsys):
    assert bench.main(["peaks", "--seconds=0.001", f"--out={tmp_path / 'peaks.json'}"]) == 0
    found = json.loads((tmp_path / "peaks.json").read_text())
    assert set(found["products"]) == {"f32", "bf16"} and set(found["bandwidth"]) == {"cache", "memory"}
    assert all(1e8 < value < 1e15 for value in (*found["products"].values(), *found["bandwidth"].values()))
    assert found["data_sheet"] is None and "jax" in found["versions"]
    assert capsys.readouterr().out.strip() == peaks.show(found)
    assert peaks.show(found | {"data_sheet": {"bf16": 989e12, "memory": 3.35e12}}).endswith(
        "; data sheet 989 TFLOP/s (bf16), 3.35 TB/s")
