"""A program starts itself anew with huge pages at most once, and stays what it was called as."""

import os
import subprocess
import sys

from trm_jax.runtime import pages

PROGRAM = """
import os, pathlib, sys
from trm_jax.runtime import pages
pages.POLICY = pathlib.Path(sys.argv[1])
print("begins", os.getpid(), flush=True)
pages.use_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[2:])
"""


def run(tmp_path, policy, **variables):
    program, file = tmp_path / "program.py", tmp_path / "enabled"
    program.write_text(PROGRAM)
    file.write_text(policy)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | variables
    done = subprocess.run([sys.executable, program, file, "a word", "--x"], capture_output=True, text=True,
                          env=environment, check=True)
    return done.stdout.splitlines()


def test_once_where_the_kernel_gives_them_to_those_who_ask(tmp_path):
    first, second, last = run(tmp_path, "always [madvise] never\n", GLIBC_TUNABLES="glibc.malloc.check=0")
    assert first == second and last == f"glibc.malloc.check=0:{pages.TUNABLE}=1 ['a word', '--x']"


def test_not_where_it_would_change_nothing(tmp_path):
    assert len(run(tmp_path, "[always] madvise never\n")) == len(run(tmp_path, "always madvise [never]\n")) == 2
    assert len(run(tmp_path, "always [madvise] never\n", GLIBC_TUNABLES=f"{pages.TUNABLE}=0")) == 2
