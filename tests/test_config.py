"""The config door: what is refused, by which name, and that what comes through comes back."""

import json
import re

import pytest
from ml_collections import ConfigDict

from trm_jax import config
from trm_jax.config import ConfigError, Experiment


def changed(**fields):
    """The default as a plain dict, with dotted fields (`__` for the dot) changed or added."""
    raw = config.to_json(Experiment())
    for name, value in fields.items():
        *sections, last = name.split("__")
        node = raw
        for section in sections:
            node = node[section]
        node[last] = value
    return raw


def refusal(**fields) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse(changed(**fields))
    return str(caught.value)


BAD = [
    ({"arch__hidden_siz": 64}, "arch.hidden_siz: unknown field; did you mean arch.hidden_size?"),
    ({"learning_rate_of_the_thing": 1}, "learning_rate_of_the_thing: unknown field"),
    ({"arch__H_cycles": 0}, "arch.H_cycles = 0: must be at least 2"),
    ({"arch__H_cycles": 1}, "arch.H_cycles = 1: must be at least 2 in training"),
    ({"arch__L_cycles": 0}, "arch.L_cycles = 0: must be at least 1"),
    ({"curriculum_milestones": [20.0, 40.0], "curriculum_heads_to_add": [1]},
     "curriculum_heads_to_add = (1,): must have one entry for each of curriculum_milestones (2), has 1"),
    # Ten increments for six milestones, as one published config has it.
    ({"curriculum_L_milestones": [1, 2, 3, 4, 5, 6], "curriculum_L_to_add": [1] * 10},
     "must have one entry for each of curriculum_L_milestones (6), has 10"),
    ({"curriculum_milestones": [40.0, 20.0], "curriculum_heads_to_add": [1, 1]}, "must ascend"),
    ({"curriculum_milestones": [120.0], "curriculum_heads_to_add": [1]}, "are percent of all steps"),
    ({"curriculum_milestones": [12.0], "curriculum_heads_to_add": [-1]}, "must not be negative"),
    ({"arch__prob_detach_prev_H": 90}, "arch.prob_detach_prev_H = 90.0: is a share, from 0 to 1 (not percent)"),
    ({"deepen__carry_steps": 3}, "deepen.carry_steps = 3: needs deepen.carry_share > 0"),
    ({"deepen__carry_share": -0.1}, "deepen.carry_share = -0.1: is a share"),
    ({"lr": "1e-3"}, "lr = '1e-3': must be of type float, is str"),
    ({"arch__hidden_size": 64.0}, "arch.hidden_size = 64.0: must be of type int, is float"),
    ({"ema": 1}, "ema = 1: must be of type bool, is int"),
    ({"seed": True}, "seed = True: must be of type int, is bool"),
    ({"lr": float("nan")}, "lr = nan: must be finite"),
    ({"eval__H_test": [4, "8"]}, "eval.H_test = [4, '8']: every item must be of type int, is str"),
    ({"eval__H_test": []}, "eval.H_test = (): needs entries of at least 1"),
    ({"eval__H_test": [8, 4]}, "must ascend"),
    ({"arch": 3}, "arch = 3: must be a section with fields"),
    ({"optimizer": "adam"}, "optimizer = 'adam': must be one of 'adam_atan2', 'adamw'"),
    ({"arch__loss__loss_type": "mse"}, "arch.loss.loss_type = 'mse': must be one of"),
    ({"arch__mlp_t": False, "arch__num_heads": 7}, "arch.num_heads = 7: must divide arch.hidden_size = 512"),
    ({"arch__mlp_t": False, "arch__pos_encodings": "rope", "arch__hidden_size": 24, "arch__puzzle_emb_ndim": 24},
     "RoPE needs an even head size"),
    ({"arch__pos_encodings": "rope"}, "RoPE needs attention; set arch.mlp_t = False"),
    ({"arch__puzzle_emb_ndim": 0}, "arch.puzzle_emb_len = 16: must be 0 when arch.puzzle_emb_ndim = 0"),
    ({"arch__puzzle_emb_ndim": 1025, "arch__puzzle_emb_len": 2}, "does not fit into puzzle_emb_len * hidden_size"),
    ({"beta1": 1.0}, "beta1 = 1.0: must be at least 0 and under 1"),
    ({"total_steps": -1}, "total_steps = -1: must not be negative"),
    ({"global_batch_size": 0}, "global_batch_size = 0: must be at least 1"),
    ({"seed": -1}, "seed = -1: must not be negative"),
    ({"seed": 2**32}, "seed = 4294967296: must be under 2**32"),
    ({"data__make__source": "generate", "data__make__num_aug": 3},
     "data.make.num_aug = 3: has no meaning with data.make"),
    ({"data__make__source": "csv"}, "data.make.csv = '': is needed with data.make.source = 'csv'"),
    ({"data__make__source": "arc_json"}, "data.make.source = 'arc_json': is not for data.puzzle = 'sudoku'"),
    ({"data__make__box": [3]}, "data.make.box = (3,): must be rows and columns"),
    ({"data__make__train": -1}, "data.make.train = -1: must not be negative"),
    ({"epochs": 2**63}, "epochs = 9223372036854775808: must be at most"),
    ({"lr": 10**400}, "must be finite"),
    # The tail starts where the curriculum stands, which may grow past it.
    ({"deepen__tail_prob": 0.1, "deepen__tail_max_H": 4, "curriculum_milestones": [50.0],
      "curriculum_heads_to_add": [3]}, "deepen.tail_max_H = 4: must be at least"),
]


@pytest.mark.parametrize("fields, message", BAD, ids=lambda value: ",".join(value) if isinstance(value, dict) else "")
def test_what_cannot_work_is_refused_by_name(fields, message):
    text = refusal(**fields)
    assert text.startswith("the config cannot be run:")
    assert message in text


def test_all_faults_are_listed_at_once():
    unreadable = refusal(arch__hidden_siz=3, lr="fast", optimizer="sgd", eval__H_test=[1.5])
    assert len(unreadable.splitlines()) == 5
    impossible = refusal(arch__H_cycles=0, arch__L_cycles=0, arch__prob_detach_prev_H=90, ema_rate=1.5)
    assert len(impossible.splitlines()) == 5


def test_the_locked_config_refuses_new_fields_and_suggests():
    c = config.default()
    with pytest.raises((AttributeError, KeyError), match="hidden_size"):
        c.arch.hidden_siz = 3
    with pytest.raises(TypeError):
        c.global_batch_size = "many"


def test_round_trips():
    c = config.default()
    c.arch.hidden_size = 64
    c.arch.puzzle_emb_ndim = 64
    c.eval.H_test = (1, 2)
    c.curriculum_milestones, c.curriculum_heads_to_add = (50.0,), (2,)
    e = config.parse(c)
    assert (e.arch.hidden_size, e.eval.H_test, e.curriculum_milestones) == (64, (1, 2), (50.0,))
    through_file = json.loads(json.dumps(config.to_json(e)))
    assert config.parse(through_file) == e
    assert config.parse(config.to_config_dict(e)) == e
    assert config.parse(ConfigDict(through_file)) == e
    assert config.parse({}) == Experiment()


def test_convenient_spellings_are_taken_as_meant():
    e = config.parse(changed(lr=1, eval__H_test=8, curriculum_milestones=[50], curriculum_heads_to_add=1))
    assert (e.lr, e.eval.H_test, e.curriculum_milestones, e.curriculum_heads_to_add) == (1.0, (8,), (50.0,), (1,))
    assert isinstance(e.lr, float) and isinstance(e.curriculum_milestones[0], float)


def test_differences_are_those_that_change_the_run():
    old = config.to_json(Experiment())
    new = changed(lr=2e-3, arch__hidden_size=256, eval__H_test=[2], eval__batch_size=3, log__interval_steps=1,
                  checkpoint__keep_last=9, data__make__source="hub", data__path="data/other")
    assert config.differences(old, new) == {"lr": (1e-3, 2e-3), "arch.hidden_size": (512, 256),
                                            "data.path": ("data/sudoku", "data/other")}
    assert config.differences(old, old) == {}
    del new["seed"]
    assert config.differences(old, new)["seed"] == (0, "(absent)")


def test_the_command_for_a_missing_dataset_makes_the_folder_that_is_missing():
    made = config.Make(source="generate", box=(2, 3), clues=9)
    assert config.Data(path="my data/x", make=made).how_to_make == (
        "python -m trm_jax data sudoku --generate --box 2x3 --clues 9 --out 'my data/x'")
    assert config.Data(path="data/x").how_to_make == "python -m trm_jax data sudoku --help"


@pytest.mark.parametrize("text, made", [
    ("sudoku --generate --blanks 40 --train 60000 --test 1000 --out data/sudoku-40",
     {"source": "generate", "clues": 41, "train": 60_000, "test": 1000}),
    ("sudoku --generate --box 2x2 --clues 5 --train 20000 --out x",
     {"source": "generate", "box": (2, 2), "clues": 5, "train": 20_000}),
    ("sudoku --hub --subsample 1000 --out x", {"source": "hub", "train": 1000}),
    ("maze --generate --size 6x6 --single_path --out x", {"source": "generate", "size": (6, 6), "single_path": True}),
    ("arc --json_dir kaggle --subsets training,concept --test_subset training --num_aug 3 --out x",
     {"source": "arc_json", "json_dir": "kaggle", "subsets": ("training", "concept"), "test_subset": "training",
      "num_aug": 3}),
    ("by hand, 'somehow", {})])
def test_the_command_in_configs_of_old_is_read_as_what_it_makes(text, made):
    puzzle = text.split()[0] if made else "sudoku"
    e = config.parse({"data": {"puzzle": puzzle, "make": f"python -m trm_jax.data {text}"}})
    assert e.data.make == config.Make(**made)
    assert "data.make" not in config.differences({"data": {"make": text}}, config.to_json(e))


def test_experiment_files_are_looked_at_before_they_are_run(tmp_path):
    ran = tmp_path / "ran"
    for name, text, says in [
            ("a.py", f"open({str(ran)!r}, 'w')\n", "does not define get_config"),
            ("b.py", f"open({str(ran)!r}, 'w')\ndef get_config(:\n", "is not Python"),
            ("c.txt", f"open({str(ran)!r}, 'w')\ndef get_config():\n    pass\n", "must end in .py"),
            ("d.py", "def get_config():\n    return 3\n", "must return a ConfigDict, returned int"),
            ("e.py", "def get_config():\n\n    return 1 / 0\n", "e.py, line 3: ZeroDivisionError: division by zero"),
            ("f.py", "import nowhere_at_all\nget_config = 3\n", "f.py, line 1: ModuleNotFoundError")]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=re.escape(says)) as caught:
            config.from_file(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_names_of_experiments_and_of_their_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("rsm_sudoku:quick") == config.load("experiments/rsm_sudoku.py:quick")
    assert config.run_name("experiments/rsm_sudoku.py:quick") == "rsm_sudoku-quick"
    assert config.run_name("rsm_sudoku") == "rsm_sudoku"
    assert config.run_name("trm_ablations_sudoku:no_ema:quick") == "trm_ablations_sudoku-no_ema-quick"
    assert config.shipped("experiments/arc_quick").is_dir()
