"""What the options of all commands have in common: one-line errors, numbers with a range, lists with commas.

Every number that a command takes has a range, every list is written with commas, and no text is empty. A command
reads its arguments in `main` only; what it calls takes plain values.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

MOST = 2**31 - 1  # of whole numbers that have no other bound: steps and cycles are counted in 32 bits on the devices
SEEDS = 2**32 - 1  # jax would drop the digits above


class Parser(argparse.ArgumentParser):
    """Its errors are one line and exit with 2; options are written out in full."""

    def __init__(self, prog: str | None = None, description: str | None = None, epilog: str | None = None, **more: Any):
        super().__init__(prog, description=description, epilog=epilog, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            if word.startswith("--") and word.endswith("=--"):  # argparse would drop it and go on with an empty list
                self.error(f"argument {word[:-3]}: '--' is no value")
        return super().parse_known_args(words, namespace)

    def error(self, message: str):
        short = message if len(message) < 500 else message[:400] + " ..."
        self.exit(2, f"error: {plain(short)}; see {self.prog} --help\n")


def plain(text: str) -> str:
    """The text on one line, with escapes for what a terminal would not print."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def option(parser: Any, name: str, *aliases: str, **how: Any) -> None:
    """Adds an option. `aliases` are its older names: they still work, and --help does not show them."""
    action = parser.add_argument(name, *aliases, **how)
    action.option_strings = [name]  # what help and errors call it; all the names are known to the parser by now


# Types, for `type=` of an option.


def integer(least: int = 0, most: int = MOST) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""
    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{_short(text)} must be a whole number of at least {least}"
                                             + (f" and at most {most}" if _far(text, most) else ""))
        return int(text)
    return read


def number(least: float = 0.0, most: float = 1e9, above: bool = False) -> Callable[[str], float]:
    """A finite number from `least` to `most`; above: greater than `least`."""
    def read(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else float("nan")
        except ValueError:
            value = float("nan")
        if not least <= value <= most or (above and value == least):  # not-a-number is in no range
            raise argparse.ArgumentTypeError(f"{_short(text)} must be a number {'over' if above else 'of at least'} "
                                             f"{least:g}" + (f" and at most {most:g}" if value > most else ""))
        return value
    return read


def listed(kind: Callable[[str], Any], ascending: bool = False) -> Callable[[str], tuple[Any, ...]]:
    """Items with commas between."""
    def read(text: str) -> tuple[Any, ...]:
        items = tuple(kind(item.strip()) for item in text.split(","))
        if ascending and list(items) != sorted(set(items)):
            raise argparse.ArgumentTypeError(f"{_short(text)} must ascend")
        return items
    return read


def text(given: str) -> str:
    """A file, folder or name: not empty."""
    if not given or "\0" in given:
        raise argparse.ArgumentTypeError(f"{_short(given)} is no name")
    return given


def one_of(*names: str) -> Callable[[str], str]:
    """One of these names; for items of a list (a single one takes `choices`)."""
    def read(given: str) -> str:
        if given not in names:
            raise argparse.ArgumentTypeError(f"{_short(given)} must be one of {', '.join(names)}")
        return given
    return read


def boolean(given: str) -> bool:
    """True or False."""
    if given.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{_short(given)} must be True or False")
    return given.lower() == "true"


def _far(given: str, most: int) -> bool:
    return bool(re.fullmatch(r"\+?[0-9]+", given)) and (len(given) > 30 or int(given) > most)


def _short(given: str) -> str:
    return repr(given) if len(given) < 60 else f"{given[:50]!r}..."


# Options that several commands have.


def add_source(parser: Any, names: Sequence[str], default: str | None = None) -> None:
    """--weights or --workdir, two names for one thing: `source` of the parsed arguments.

    Args:
      names: of the weights that come with the package.
      default: what is taken where neither is given; None: one of them must be.
    """
    either = parser.add_mutually_exclusive_group(required=default is None)
    either.add_argument("--weights", dest="source", metavar="SOURCE", type=text, default=default,
                        help=f"a name ({', '.join(names)}), a file of trm-jax weights, the folder of a run, or "
                        "hf://OWNER/NAME"
                        + (f" ({default})" if default else ""))
    either.add_argument("--workdir", dest="source", metavar="RUN", type=text, default=argparse.SUPPRESS,
                        help="the same, said of a run: its best checkpoint is used")


def add_cache(parser: Any, default: str) -> None:
    """--compilation_cache."""
    parser.add_argument("--compilation_cache", metavar="DIR", default=default,
                        help="folder that keeps compiled programs between calls; empty: none (%(default)s)")


def add_out(parser: Any, what: str, required: bool = True) -> None:
    """--out, the file or folder that the command writes."""
    parser.add_argument("--out", required=required, type=text, metavar="PATH", help=what)


def add_format(parser: Any, *forms: str) -> None:
    """--format, of what goes to standard output; the first one unless told otherwise."""
    parser.add_argument("--format", choices=forms, default=forms[0], help="of standard output (%(default)s)")


def add_result(parser: Any) -> None:
    """--out and --format of a command whose result is a dict, which `files.give` takes."""
    add_out(parser, "JSON file of the result", required=False)
    add_format(parser, "text", "json")


def add_max_cycles(parser: Any, default: int | None,
                   what: str = "test-time budget of a try: outer cycles at most") -> None:
    """--max_cycles, which used to be called by many names."""
    option(parser, "--max_cycles", "--max_steps", "--cycles", "--limit", type=integer(1), default=default, metavar="N",
           help=f"{what} ({'what suits the weights' if default is None else default})")


def add_settle(parser: Any, default: int = 8) -> None:
    """--settle."""
    parser.add_argument("--settle", type=integer(0), default=default, metavar="N", help="done when the answer has "
                        "stood still for so many cycles; 0: never for that (%(default)s)")


def add_tries(parser: Any, default: Any = 1, kind: Callable[[str], Any] | None = None,
              what: str = "tries of a puzzle that the rules do not accept; 1: one") -> None:
    """--tries, which used to be called --restarts."""
    option(parser, "--tries", "--restarts", type=kind or integer(1, 1_000_000), default=default, metavar="N",
           help=f"{what} ({_shown(default) or 'as many as there is time for'})")


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default or "")


def add_seed(parser: Any, what: str) -> None:
    """--seed."""
    parser.add_argument("--seed", type=integer(0, SEEDS), default=0, metavar="N", help=f"{what} (%(default)s)")


def add_batch_size(parser: Any, default: int, what: str = "puzzles that are thought about at once") -> None:
    """--batch_size."""
    option(parser, "--batch_size", "--batch", type=integer(1, 1 << 20), default=default, metavar="N",
           help=f"{what} (%(default)s)")
