"""Huge memory pages for a process that computes on a CPU."""

from __future__ import annotations

import os
import pathlib
import sys

TUNABLE = "glibc.malloc.hugetlb"  # glibc 2.35; older ones, and other C libraries, take no notice
POLICY = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this process anew with huge pages for its large arrays, where Linux gives them to those who ask.

    XLA allocates a step's scratch memory anew at every call on a CPU, and above 32 MiB the C library returns it to the
    system each time. With pages of 4 KiB the system then clears every page at every step: a fifth to a third of the
    time of a step that takes 100 MB. Only whoever starts a process can set this; so call it first of all, and only when
    run as a program. What the process is called with, and its number, stay the same.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or not sys.executable:
        return
    try:
        if "[madvise]" not in POLICY.read_text(encoding="utf-8"):
            return
    except OSError:
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{TUNABLE}=1".lstrip(":")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
