"""python -m trm_jax.main --config=experiments/rsm_sudoku.py:quick --workdir=runs/quick

Trains and evaluates a config; the same command continues a run that was interrupted.
"""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from trm_jax import config
from trm_jax.jobs import evaluate, pool, train
from trm_jax.reports import describe
from trm_jax.runtime import distributed, errors

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Experiment file, with a variant after a colon: "
                                "experiments/rsm_sudoku.py:quick. Fields are set by --config.FIELD=VALUE.")
flags.DEFINE_string("workdir", None, "Folder of the run: config, checkpoints, metrics, evaluations.")
flags.DEFINE_enum("mode", "train", ["train", "evaluate", "pool", "describe"],
                  "train: train and evaluate, from the last checkpoint if there is one. evaluate: evaluate the best "
                  "checkpoint. pool: ARC, evaluate every kept checkpoint and vote with all of them together. "
                  "describe: parameters, FLOPs, memory and curriculum, without training.")
flags.DEFINE_string("weights", None, "With --mode=evaluate: a file of `python -m trm_jax.weights`, evaluated instead "
                    "of the run's best checkpoint; the result still goes to --workdir.")
flags.DEFINE_string("compilation_cache", distributed.COMPILED,
                    "Folder that keeps compiled programs between runs; empty: none.")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> int:
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # at absl's default jax logs its housekeeping
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if FLAGS.mode != "describe" and not FLAGS.workdir:
        raise app.UsageError(f"--mode={FLAGS.mode} needs --workdir")
    if FLAGS.weights and FLAGS.mode != "evaluate":
        raise app.UsageError(f"--weights goes with --mode=evaluate, not --mode={FLAGS.mode}")
    return errors.guarded(_run, interrupted="the same command continues from the last checkpoint")


def _run() -> None:
    experiment = config.parse(FLAGS.config)
    if FLAGS.mode == "describe":
        return print(describe.describe(experiment))
    distributed.initialize()
    distributed.enable_compilation_cache(FLAGS.compilation_cache)
    if FLAGS.weights:
        evaluate.evaluate_file(experiment, FLAGS.workdir, FLAGS.weights)
    else:
        {"train": train.train, "evaluate": evaluate.evaluate, "pool": pool.pool}[FLAGS.mode](experiment,
                                                                                                FLAGS.workdir)


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:  # ml_collections', with a KeyError in it, for a field that is not there
        sys.exit("error: --config has no field " + " ".join(getattr(error.args[0], "args", error.args)[0].split()))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
