"""python -m tests.golden.lighten FROM.npz TO.npz: a golden file of EqR or FPRM without its largest arrays.

The whole files are 1.3 to 2.4 MB each. Left out:

- under softmax all gradients of more than 4 KB, and under stablemax those of steps and of blocks after the first. Both
  losses differ in the gradient of the logits alone, and every small array of every step and block stays;
- states y of the damped and the noisy solver, whose logits stay;
- restarts where the file has MLP-T; the attention file has them.

What stays is as it was, bit for bit.
"""

import sys

import numpy as np

LARGE = 4096  # bytes


def stays(name: str, array: np.ndarray, mlp: bool) -> bool:
    if "/grads/" in name and array.nbytes > LARGE:
        return name.startswith("train/stablemax_cross_entropy/step0/") and ".layers.1." not in name
    if name.startswith(("eval/damped/", "eval/noisy/")) and name.endswith("/y"):
        return False
    return not (mlp and name.startswith("breadth/"))


def main(source: str, target: str) -> None:
    with np.load(source) as archive:
        data = {name: archive[name] for name in archive.files}
    mlp = any("mlp_t" in name for name in data)
    np.savez_compressed(target, **{name: array for name, array in data.items() if stays(name, array, mlp)})


if __name__ == "__main__":
    main(*sys.argv[1:])
