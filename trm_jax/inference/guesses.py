"""Search over guesses, with the network as the one that draws conclusions.

A node is a puzzle with some of its open cells guessed; the first has none. The network thinks about the most promising
nodes, a few at a time, each from fresh latents. The rules are asked three things, and never for an answer: is an answer
right, which values do a node's clues forbid, and which cells of an answer contradict each other. A node that is not
solved is parted by the values of one cell: one whose two likeliest values share it most evenly, since either answer to
it says most.

    cost of a node = sum over its guesses of -log(probability that the network gave the value)
                     + CONFLICT_COST for each contradiction in the answers to the nodes that it was made from

The cheapest node comes next. Nodes whose clues leave a cell without any value are dropped. A search that takes long
mostly began with a bad cell, so it begins anew with another draw: after RESTART nodes, then after twice as many, and so
on.

Best-first search with restarts is an old idea; what is ours is that nothing but the network fills in cells.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.inference.settings import Settings
from trm_jax.models.network import Bound
from trm_jax.puzzles import Domain

WIDTH = 8  # nodes that are thought about at once: more do not fit into a core's caches
CONFLICT_COST = 0.1  # in nats
LEAST = 2e-3  # no value costs more than one of this probability
SPREAD = 0.3  # the cell is drawn among those that are so near to the best, as a share of it
RESTART = 128  # nodes until the first new beginning


class Found(NamedTuple):
    """What a search came to."""

    tokens: np.ndarray | None  # [S]; None: no answer was verified
    nodes: int  # thought about, up to the one that was solved
    cycles: int  # of the node that was solved
    slot_cycles: int  # computed, idle slots included


class Thoughts(NamedTuple):
    """k nodes that were thought about at once, in the order of their turns."""

    nodes: list[Node]
    probabilities: np.ndarray  # float32 [k, S, V]
    right: np.ndarray  # bool [k], the rules accept the answer
    cycles: int
    slot_cycles: int  # computed

    @property
    def answers(self) -> np.ndarray:  # uint8 [k, S]
        return self.probabilities.argmax(-1).astype(np.uint8)


class Node(NamedTuple):
    cost: float
    order: int  # of its making: the earlier of two with one cost comes first
    tokens: np.ndarray  # [S], clues and guesses


def can_guess(bound: Bound, domain: Domain) -> bool:
    """Whether there is a search: it takes rules, units that forbid values, and a network that draws nothing itself."""
    return domain.has_rules and bool(domain.units) and not bound.model.draws


@jax.jit
def _think(bound: Bound, tokens: jax.Array, cycles: jax.Array) -> jax.Array:
    """tokens [B, S] -> probabilities [B, S, V] after so many cycles."""
    x = bound.embed(tokens, jnp.zeros(tokens.shape[0], jnp.int32))
    return bound.probabilities(bound.unroll(bound.initial_latents(tokens), x, cycles).y)


class GuessSearch:
    """Searches for answers to puzzles of one domain, one puzzle after another."""

    def __init__(self, bound: Bound, domain: Domain):
        self._bound, self._domain = bound, domain
        units = np.array(domain.units)  # [K, S]
        self._peers = (units[:, :, None] == units[:, None, :]).any(0) & ~np.eye(domain.seq_len, dtype=bool)

    def warm_up(self) -> None:
        """Compiles what any search runs."""
        for slots in (1 << k for k in range(WIDTH.bit_length())):
            _think(self._bound, np.ones((slots, self._domain.seq_len), np.int32), np.int32(1))

    def __call__(self, inputs: np.ndarray, settings: Settings, until: float = float("inf")) -> Found:
        """The answer to inputs [S]; arguments as those of `thoughts`."""
        nodes = slot_cycles = 0
        for thought in self.thoughts(inputs, settings, until):
            slot_cycles += thought.slot_cycles
            if thought.right.any():
                first = int(np.argmax(thought.right))
                return Found(thought.answers[first], nodes + first + 1, thought.cycles, slot_cycles)
            nodes += len(thought.nodes)
        return Found(None, nodes, 0, slot_cycles)

    def thoughts(self, inputs: np.ndarray, settings: Settings, until: float = float("inf")) -> Iterator[Thoughts]:
        """What is thought in search of an answer to inputs [S], call of the device by call, up to the one that is
        verified.

        Args:
          settings: tries (nodes at most), guess_cycles (of each; the first has twice as many), max_calls, seed.
          until: time.perf_counter() at which the search is given up.
        """
        rng, orders = np.random.default_rng(settings.seed), itertools.count()
        first = Node(0.0, -1, inputs.astype(np.int32))
        queue, nodes, slot_cycles, anew, stretch = [first], 0, 0, RESTART, RESTART
        calls = settings.max_calls or float("inf")
        while queue and nodes < settings.tries and time.perf_counter() < until:
            if nodes >= anew:
                stretch *= 2
                queue, anew = [first], nodes + stretch
            taken = [heapq.heappop(queue) for _ in range(min(len(queue), WIDTH, settings.tries - nodes))]
            cycles = settings.guess_cycles * (2 if taken[0] is first else 1)
            slots = 1 << (len(taken) - 1).bit_length()
            if (slot_cycles + slots * cycles) * self._bound.core_calls > calls:
                break
            padded = np.stack([node.tokens for node in taken] + [inputs.astype(np.int32)] * (slots - len(taken)))
            probabilities = np.asarray(_think(self._bound, padded, np.int32(cycles)))[:len(taken)]
            nodes, slot_cycles = nodes + len(taken), slot_cycles + slots * cycles
            answers = probabilities.argmax(-1).astype(np.uint8)
            right = self._domain.verify(inputs[None], answers).solved
            yield Thoughts(taken, probabilities, right, cycles, slots * cycles)
            if right.any():
                return
            for node, p in zip(taken, probabilities):
                for child in self._parted(node, p, rng, orders):
                    heapq.heappush(queue, child)

    def _parted(self, node: Node, p: np.ndarray, rng: np.random.Generator, orders: itertools.count[int]) -> list[Node]:
        """The node with one more guess, for every value of one cell; p [S, V]."""
        forbidden = self._domain.forbidden(node.tokens)
        cells = np.flatnonzero(node.tokens < 2)
        if forbidden.all(-1).any() or not len(cells):
            return []
        allowed = np.where(forbidden, 0, p) + 1e-6 * ~forbidden
        allowed /= allowed.sum(-1, keepdims=True)
        second = np.sort(allowed[cells], axis=-1)[:, -2]
        cell = int(rng.choice(cells[second >= (1 - SPREAD) * second.max()]))
        cost = node.cost + CONFLICT_COST * self._contradictions(node.tokens, p)
        found = []
        for value in np.flatnonzero(~forbidden[cell]):
            tokens = node.tokens.copy()
            tokens[cell] = value
            found.append(Node(float(cost - np.log(max(allowed[cell, value], LEAST))), next(orders), tokens))
        return found

    def _contradictions(self, tokens: np.ndarray, p: np.ndarray) -> int:
        """Pairs of cells that are answered by one value and must not be."""
        value = np.where(tokens >= 2, tokens, p.argmax(-1))
        return int(((value[:, None] == value[None]) & self._peers).sum()) // 2
