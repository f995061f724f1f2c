"""Search over guesses, with the network as the one that draws conclusions.

A node is a puzzle with some of its open cells guessed. The network thinks about the most promising nodes, a few at a
time, and goes on from the latents of the node that each was made from. The rules are asked three things, and never for
an answer: is an answer right, which values do a node's clues forbid, and do the cells that the network is sure of
contradict each other. A node that is not solved is parted by the values of one cell: the one whose two likeliest values
share it most evenly, since either answer to it says most.

    cost of a node = sum over its guesses of -log(probability that the network gave the value)
                     + CONFLICT_COST for each contradiction among the sure cells of the nodes it was made from

The cheapest node comes next. Nodes whose clues leave a cell without any value are dropped.

Best-first search over guesses is an old idea; what is ours is that nothing but the network fills in cells. Source of
the network's part: RSM's recursion (recursion.py), which may be unrolled from any latents.
"""

from __future__ import annotations

import heapq
import itertools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from trm_jax.inference.settings import Settings
from trm_jax.models.network import Bound
from trm_jax.puzzles import Domain

WIDTH = 8  # nodes that are thought about at once: more do not fit into a core's caches
SURE = 0.9  # from this probability on the network is taken to be sure of a cell
CONFLICT_COST = 2.0  # in nats
LEAST = 2e-3  # no value costs more than one of this probability


class Found(NamedTuple):
    """What a search came to."""

    tokens: np.ndarray | None  # [S]; None: no answer was verified
    nodes: int  # thought about
    cycles: int  # that led to the answer, from the puzzle's first latents on
    slot_cycles: int  # computed, idle slots included


class Node(NamedTuple):
    tokens: np.ndarray  # [S], clues and guesses
    latents: Any  # leaves [T, D], of the node that it was made from
    cycles: int  # that brought these latents


def can_guess(bound: Bound, domain: Domain) -> bool:
    """Whether there is a search: it takes rules, units that forbid values, and a network that draws nothing itself."""
    return domain.has_rules and bool(domain.units) and not bound.model.draws


@jax.jit
def _think(bound: Bound, tokens: jax.Array, latents: Any, cycles: jax.Array) -> tuple[Any, jax.Array]:
    """tokens [B, S], latents of [T, B, D] -> (latents after so many more cycles, probabilities [B, S, V])."""
    x = bound.embed(tokens, jnp.zeros(tokens.shape[0], jnp.int32))
    latents = bound.unroll(latents, x, cycles)
    return latents, bound.probabilities(latents.y)


class Search:
    """Searches for answers to puzzles of one domain, one puzzle after another."""

    def __init__(self, bound: Bound, domain: Domain):
        self._bound, self._domain = bound, domain
        units = np.array(domain.units)  # [K, S]
        self._peers = (units[:, :, None] == units[:, None, :]).any(0) & ~np.eye(domain.seq_len, dtype=bool)

    def __call__(self, inputs: np.ndarray, settings: Settings, until: float = float("inf")) -> Found:
        """The answer to inputs [S].

        Args:
          settings: tries (nodes at most), guess_cycles (of each), max_calls.
          until: time.perf_counter() at which the search is given up.
        """
        order, nodes, slot_cycles = itertools.count(), 0, 0
        start = jax.tree.map(lambda a: np.asarray(a[:, 0]), self._bound.initial_latents(jnp.asarray(inputs[None])))
        open_nodes = [(0.0, next(order), Node(inputs.astype(np.int32), start, 0))]
        calls = settings.max_calls or float("inf")
        while open_nodes and nodes < settings.tries and time.perf_counter() < until:
            taken = [heapq.heappop(open_nodes) for _ in range(min(len(open_nodes), WIDTH, settings.tries - nodes))]
            cycles = settings.guess_cycles if nodes else 2 * settings.guess_cycles
            slots = 1 << (len(taken) - 1).bit_length()
            if (slot_cycles + slots * cycles) * self._bound.core_calls > calls:
                break
            made, probabilities = self._think([node for _, _, node in taken], slots, cycles)
            nodes, slot_cycles = nodes + len(taken), slot_cycles + slots * cycles
            answers = probabilities.argmax(-1).astype(np.uint8)
            right = self._domain.verify(inputs[None], answers).solved
            if right.any():
                best = int(np.argmax(right))
                return Found(answers[best], nodes, taken[best][2].cycles + cycles, slot_cycles)
            for (cost, _, node), latents, p in zip(taken, made, probabilities):
                for more, child in self._parted(node._replace(latents=latents, cycles=node.cycles + cycles), p):
                    heapq.heappush(open_nodes, (cost + more, next(order), child))
        return Found(None, nodes, 0, slot_cycles)

    def _think(self, nodes: list[Node], slots: int, cycles: int) -> tuple[list[Any], np.ndarray]:
        """(latents of each node, probabilities [n, S, V]); the last slots repeat a node."""
        padded = nodes + nodes[:1] * (slots - len(nodes))
        latents = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *(node.latents for node in padded))
        latents, p = jax.device_get(_think(self._bound, np.stack([node.tokens for node in padded]), latents,
                                           np.int32(cycles)))
        return [jax.tree.map(lambda a, b=b: a[:, b], latents) for b in range(len(nodes))], p[:len(nodes)]

    def _parted(self, node: Node, p: np.ndarray) -> list[tuple[float, Node]]:
        """(cost beyond the node's, node with one more guess) for every value of one cell; p [S, V]."""
        forbidden = self._domain.forbidden(node.tokens)
        cells = np.flatnonzero(node.tokens < 2)
        if forbidden.all(-1).any() or not len(cells):
            return []
        allowed = np.where(forbidden, 0, p) + 1e-6 * ~forbidden
        allowed /= allowed.sum(-1, keepdims=True)
        cell = int(cells[np.sort(allowed[cells], axis=-1)[:, -2].argmax()])
        contradictions = CONFLICT_COST * self._contradictions(node.tokens, p)
        found = []
        for value in np.flatnonzero(~forbidden[cell]):
            tokens = node.tokens.copy()
            tokens[cell] = value
            found.append((float(contradictions - np.log(max(allowed[cell, value], LEAST))),
                          node._replace(tokens=tokens)))
        return found

    def _contradictions(self, tokens: np.ndarray, p: np.ndarray) -> int:
        """Pairs of clues and sure cells that have one value and must not."""
        clue = tokens >= 2
        value, sure = np.where(clue, tokens, p.argmax(-1)), clue | (p.max(-1) >= SURE)
        same = (value[:, None] == value[None]) & sure[:, None] & sure[None] & self._peers
        return int(same.sum()) // 2
