"""What all commands' options have in common."""

import argparse

import pytest

from trm_jax.runtime import arguments


@pytest.fixture
def parser():
    p = arguments.Parser("python -m trm_jax thing")
    p.add_argument("--count", type=arguments.integer(1))
    p.add_argument("--share", type=arguments.number(0, 1))
    p.add_argument("--minutes", type=arguments.number(above=True))
    p.add_argument("--sizes", type=arguments.listed(arguments.integer(1), ascending=True))
    p.add_argument("--vary", type=arguments.listed(arguments.one_of("start", "cycle")))
    p.add_argument("--make", type=arguments.boolean)
    arguments.add_out(p, "a file", required=False)
    arguments.add_source(p, ["quick"], "quick")
    arguments.add_max_cycles(p, 256)
    arguments.add_tries(p)
    return p


@pytest.mark.parametrize("given", [
    "--count=0", "--count=-1", "--count=1.5", "--count=²", "--count=٣", "--count=", "--count=nan", "--count=1_0",
    f"--count={10**40}", "--count=2147483648", "--count=9" * 1 + "9" * 6000, "--share=nan", "--share=inf",
    "--share=1.1", "--share=x", "--minutes=0", "--minutes=-inf", "--sizes=4,2", "--sizes=1,,2", "--sizes=1,x",
    "--vary=start,end", "--make=2", "--out=", "--out=a\0b", "--weights=", "--max_cycles=0", "--tries=0",
    "--tries=1000000000", "--cou=1",
    "--\x1b[31m", "--count=\x1b[31m\n", "--count=\udcff"])
def test_what_is_out_of_range_is_refused_in_one_line(parser, given, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([given])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "\x1b" not in err
    assert err.endswith("; see python -m trm_jax thing --help\n") and len(err) < 400
    assert given.partition("=")[0].replace("\x1b", "\\x1b") in err


def test_values(parser):
    args = parser.parse_args(["--count=+7", "--share=0.5", "--sizes=1, 64,512", "--vary=cycle,start", "--make=False"])
    assert (args.count, args.share, args.make) == (7, 0.5, False)
    assert (args.sizes, args.vary) == ((1, 64, 512), ("cycle", "start"))
    assert (args.source, args.max_cycles, args.tries) == ("quick", 256, 1)


def test_older_names_still_work_and_are_not_shown(parser):
    for name in ("max_cycles", "max_steps", "cycles", "limit"):
        assert parser.parse_args([f"--{name}=5"]).max_cycles == 5
    assert parser.parse_args(["--restarts=3"]).tries == 3
    shown = parser.format_help()
    assert "--max_cycles" in shown and "--tries" in shown
    assert not any(f"--{old}" in shown for old in ("max_steps", "cycles", "limit", "restarts"))


def test_a_run_and_weights_are_one_source(parser):
    assert parser.parse_args(["--workdir=runs/a"]).source == "runs/a"
    assert parser.parse_args(["--weights=w.safetensors"]).source == "w.safetensors"
    with pytest.raises(SystemExit):
        parser.parse_args(["--workdir=a", "--weights=b"])
    bare = arguments.Parser("x")
    arguments.add_source(bare, ["quick"])
    with pytest.raises(SystemExit):
        bare.parse_args([])


def test_the_types_raise_what_argparse_expects():
    with pytest.raises(argparse.ArgumentTypeError, match="must be a number of at least 0"):
        arguments.number()("nan")
