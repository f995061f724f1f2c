"""python -m tests.golden FILE ...: the worst relative difference by kind, per file; exits 1 if one is a fault."""

import argparse
import sys

from tests.golden.check import NOISE_FACTOR, TOLERANCE, GoldenError, compare


def describe(path) -> tuple[str, bool]:
    """(a line for the terminal, is every number right?)"""
    differences = compare(path)
    parts, faults = [], [d for d in differences if not d.ok]
    for kind in dict.fromkeys(d.kind for d in differences):
        sharp = [d for d in differences if d.kind == kind and NOISE_FACTOR * d.noise <= TOLERANCE]
        blurred = [d for d in differences if d.kind == kind and NOISE_FACTOR * d.noise > TOLERANCE]
        if sharp:
            parts.append(f"{kind} {max(d.relative for d in sharp):.1e}")
        if blurred:
            worst = max(blurred, key=lambda d: d.relative)
            parts.append(f"{kind} that float32 blurs ({len(blurred)}) {worst.relative:.1e}, "
                         f"by noise alone {worst.noise:.1e}")
    lines = [f"{path}: {'FAULT' if faults else 'ok'}: " + "; ".join(parts)]
    lines += [f"  {d.name}: {d.relative:.1e}, by noise alone {d.noise:.1e}" for d in faults]
    return "\n".join(lines), not faults


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden",
        description="Compares this library with numbers that the published PyTorch code computed. Prints, for each "
                    "file, the worst difference of each kind relative to the largest value of the tensor. Exits 1 if "
                    f"one is above {TOLERANCE} and above {NOISE_FACTOR} times what moving every weight by one unit "
                    "in the last place does to the number. A FILE.json of ARC votes must be met exactly.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    status = 0
    for path in parser.parse_args(argv).files:
        try:
            text, ok = describe(path)
        except GoldenError as error:
            text, ok = str(error), False
        print(text, file=sys.stdout if ok else sys.stderr)
        status |= not ok
    return status


if __name__ == "__main__":
    sys.exit(main())
