"""Laws that every registered domain keeps, and how a domain of one's own is found."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import domains
from trm_jax import config, puzzles
from trm_jax.data import __main__ as command
from trm_jax.data import dataset
from trm_jax.puzzles import Domain, PuzzleError, Symmetry

EVERY = [domain for name in puzzles.names() for domain in domains.small(name)]


@pytest.mark.parametrize("domain", EVERY, ids=lambda domain: domain.title)
def test_laws(domain):
    domains.check(domain)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 12), st.integers(1, 30))
def test_the_inverse_of_a_symmetry_undoes_it(seed, B, V, S):
    rng = np.random.default_rng(seed)
    symmetry = Symmetry(rng.permuted(np.tile(np.arange(V), (B, 1)), axis=1),
                        rng.permuted(np.tile(np.arange(S), (B, 1)), axis=1))
    tokens = rng.integers(V, size=(B, S), dtype=np.uint8)
    np.testing.assert_array_equal(symmetry.inverse().apply(symmetry.apply(tokens)), tokens)
    np.testing.assert_array_equal(symmetry.apply(symmetry.inverse().apply(tokens)), tokens)


@settings(deadline=None)
@given(st.sampled_from([(2, 2), (2, 3), (3, 3), (3, 4), (4, 4)]), st.data())
def test_any_sudoku_text_is_read_back_or_refused(box, data):
    """Whatever the cells are: the same tokens come back, but where a big grid's alphabet cannot be told."""
    domain = puzzles.get("sudoku", box_rows=box[0], box_cols=box[1])
    tokens = np.array(data.draw(st.lists(st.integers(1, domain.vocab_size - 1), min_size=domain.seq_len,
                                         max_size=domain.seq_len)), np.uint8)
    try:
        for text in (domain.decode(tokens), domain.render(tokens)):
            np.testing.assert_array_equal(domain.encode(text), tokens)
    except PuzzleError as error:
        assert domain.side > 9 and "only letters up to" in str(error)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(EVERY), st.text(max_size=120))
def test_no_text_breaks_a_reader(domain, text):
    for piece in domain.split(text):
        try:
            tokens = domain.encode(piece.text)
        except PuzzleError as error:
            assert "\n" not in str(error)
        else:
            assert tokens.shape == (domain.seq_len,) and tokens.dtype == np.uint8


JSON = st.recursive(st.none() | st.booleans() | st.integers(-3, 300) | st.text(max_size=12) | st.floats(),
                    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(
                        ["puzzle", "maze", "start", "goal", "x"]), inner, max_size=3), max_leaves=20)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(EVERY), JSON)
def test_no_json_breaks_a_reader(domain, value):
    try:
        tokens = domain.encode_value(value)
    except PuzzleError as error:
        assert str(error)
    else:
        assert tokens.shape == (domain.seq_len,)
    assert isinstance(type(domain).recognised(value), str)


@dataclasses.dataclass(frozen=True)
class Lights(Domain):
    """The least that a domain can be."""

    name = "lights"
    seq_len = 4
    vocab_size = 3
    grid = (2, 2)
    symbols = {".": 1, "*": 2}

    def encode(self, text):
        if len(text) != 4 or set(text) - set(self.symbols):
            raise PuzzleError("four lights are . or *")
        return np.array([self.symbols[c] for c in text], np.uint8)

    def decode(self, tokens, like=""):
        return "".join("?.*"[t] for t in tokens)

    render = decode


def test_a_domain_of_ones_own_is_there_as_soon_as_it_is_defined():
    assert puzzles.get("lights").encode("*..*").tolist() == [2, 1, 1, 2] and "lights" in puzzles.names()
    assert not (Lights.has_rules or Lights.has_symmetries or Lights.generates or Lights.marks_faults)
    fine = {"data": {"puzzle": "lights"}}
    assert config.parse(fine).data.puzzle == "lights"
    for more, message in (({"data": {"augment": True}}, "data.augment = True: must be False .* has no symmetries"),
                          ({"data": {"labels": "random_path"}}, "data.labels = 'random_path': must be 'fixed'"),
                          ({"eval": {"restarts": 2}}, "eval.restarts = 2: must be 0: lights has no rules")):
        with pytest.raises(config.ConfigError, match=message):
            config.parse({section: fine.get(section, {}) | more.get(section, {}) for section in ("data", "eval")})
    with pytest.raises(config.ConfigError, match="data.puzzle = 'ligths': unknown puzzle"):
        config.parse({"data": {"puzzle": "ligths"}})


def test_a_domain_of_another_package_is_found_by_its_entry_point_and_has_its_own_data_command(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text("from trm_jax.puzzles.queens import Queens\n\n\nclass Mine(Queens):\n"
                                            "    name = 'my_queens'\n")
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: my_package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[trm_jax.puzzles]\nmy_queens = my_package:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert puzzles.get("my_queens", size=5).title == "5 queens" and "my_queens" in puzzles.names()
    folder = tmp_path / "data"
    assert command.main(["my_queens", "--generate", "--size=5", "--train=20", "--test=4", "--out", str(folder)]) == 0
    assert dataset.load_domain(folder, "my_queens", 25) == puzzles.get("my_queens", size=5)


def test_rules_and_their_name_go_together():
    with pytest.raises(TypeError, match="verify and verified_as go together"):
        type("Half", (Domain,), {"verified_as": "verified"})
