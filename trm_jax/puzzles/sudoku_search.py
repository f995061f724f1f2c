"""Sudoku by search: the compiled kernels that solve, rate and generate (numba, no threads of their own).

A cell holds a bit mask of its candidates: bit d - 1 set means that digit d is still possible. Propagation runs naked
and hidden singles to their fixed point; what is left is settled by depth-first search on the cell with the fewest
candidates. A grid's randomness is a SplitMix64 stream seeded from (seed, number), never numpy's global state, so a
puzzle does not depend on how many others are made or on which thread makes it.

The kernels release the GIL and are called from plain Python threads: numba's own parallel loops would cost several
seconds of compilation and must not be entered from two threads at once, which an input pipeline would do.
To compile in seconds on a bare machine, rows are copied by loops (a slice assignment alone takes two seconds) and
constants go from kernel to kernel as np.int64 (a literal argument is compiled anew for each value).
All kernels live in this one file because numba's cache notices changes of a kernel's own file only.

Shapes: S cells, P peers of a cell, n the side; cells hold tokens (0 pad, 1 blank, digit d -> d + 1) at the doors.
"""

import numpy as np

from trm_jax.puzzles.compiled import jit

_GAMMA, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33)
_GRID_GUESSES = 500  # a random grid that needs more is started afresh (16x16 now and then)
_GRID_STARTS = 200


@jit
def _below(stream, k):
    """Next number of a SplitMix64 stream ([1] uint64), reduced to 0..k-1."""
    stream[0] += _GAMMA
    z = stream[0]
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return np.int64((z ^ (z >> _S31)) >> _S33) % k


@jit
def _propagate(cand, queue, tail, peers, units, full):
    """Naked and hidden singles to the fixed point, in place; queue[:tail] are the cells newly down to one candidate.

    False on a contradiction. A cell enters the queue once, when it comes down to one candidate, so S places suffice.
    """
    head = 0
    while True:
        while head < tail:
            cell = queue[head]
            head += 1
            bit = cand[cell]
            for j in range(peers.shape[1]):
                peer = peers[cell, j]
                if cand[peer] & bit:
                    rest = cand[peer] ^ bit
                    if rest == 0:
                        return False
                    cand[peer] = rest
                    if rest & (rest - 1) == 0:
                        queue[tail] = peer
                        tail += 1
        for u in range(units.shape[0]):
            once, twice = 0, 0
            for j in range(units.shape[1]):
                mask = cand[units[u, j]]
                twice |= once & mask
                once |= mask
            if once != full:
                return False
            hidden = once & ~twice
            for j in range(units.shape[1]):
                cell = units[u, j]
                bit = cand[cell] & hidden
                if bit != 0 and bit != cand[cell]:
                    if bit & (bit - 1):
                        return False
                    cand[cell] = bit
                    queue[tail] = cell
                    tail += 1
        if head == tail:
            return True


@jit
def _load(cand, queue, tokens, skip, peers, units, full):
    """Candidates of the clues in tokens [S], propagated; cell `skip` (-1: none) may not hold its token.

    False on a contradiction.
    """
    tail = np.int64(0)
    for cell in range(tokens.shape[0]):
        if cell == skip:
            cand[cell] = full ^ (1 << (tokens[cell] - 2))
        elif tokens[cell] >= 2:
            cand[cell] = 1 << (tokens[cell] - 2)
            queue[tail] = cell
            tail += 1
        else:
            cand[cell] = full
    return _propagate(cand, queue, tail, peers, units, full)


@jit
def _search(stack, branch, queue, limit, budget, shuffle, stream, peers, units, full, answer):
    """Depth-first search below the propagated candidates stack[0]: (solutions found, at most limit; nodes branched on).

    Solutions is -1 where more than `budget` nodes would be needed. The first solution's tokens go to answer [S].
    stack [S+1, S] candidates and branch [S+1, 2] (cell, untried candidates) are working space.
    """
    size = stack.shape[1]
    depth, found, nodes = 0, 0, 0
    while True:
        cand = stack[depth]
        cell, fewest = -1, 99
        for c in range(size):
            rest = cand[c] & (cand[c] - 1)
            if rest:
                count = 1
                while rest:
                    rest &= rest - 1
                    count += 1
                if count < fewest:
                    cell, fewest = c, count
                    if count == 2:
                        break
        branch[depth, 0] = cell
        branch[depth, 1] = 0
        if cell < 0:
            if found == 0:
                for c in range(size):
                    token, mask = 2, cand[c]
                    while mask > 1:
                        mask >>= 1
                        token += 1
                    answer[c] = token
            found += 1
            if found >= limit:
                return found, nodes
        else:
            if nodes >= budget:
                return -1, nodes
            nodes += 1
            branch[depth, 1] = cand[cell]
        while True:  # to the next untried candidate that survives propagation
            while branch[depth, 1] == 0:
                depth -= 1
                if depth < 0:
                    return found, nodes
            left = branch[depth, 1]
            bit = left & -left
            if shuffle:
                count, rest = 0, left
                while rest:
                    rest &= rest - 1
                    count += 1
                rest = left
                for _ in range(_below(stream, count)):
                    rest &= rest - 1
                bit = rest & -rest
            branch[depth, 1] = left ^ bit
            cell = branch[depth, 0]
            for c in range(size):
                stack[depth + 1, c] = stack[depth, c]
            stack[depth + 1, cell] = bit
            queue[0] = cell
            if _propagate(stack[depth + 1], queue, np.int64(1), peers, units, full):
                depth += 1
                break


@jit
def solve_range(puzzles, limit, budget, peers, units, counts, answers, nodes):
    """Fills counts [B] (solutions, at most limit; -1 gave up), answers [B, S] (first solution), nodes [B]."""
    size, full = puzzles.shape[1], (1 << units.shape[1]) - 1
    stack, branch = np.empty((size + 1, size), np.int32), np.empty((size + 1, 2), np.int32)
    queue, stream = np.empty(size, np.int32), np.zeros(1, np.uint64)
    no, nowhere = np.int64(0), np.int64(-1)
    for b in range(puzzles.shape[0]):
        counts[b], nodes[b] = 0, 0
        if _load(stack[0], queue, puzzles[b], nowhere, peers, units, full):
            counts[b], nodes[b] = _search(
                stack, branch, queue, limit, budget, no, stream, peers, units, full, answers[b])


@jit
def generate_range(first, base, clues, budget, peers, units, inputs, labels, nodes, good):
    """Candidate puzzles number first, first + 1, ... into inputs, labels [B, S], nodes [B], good [B].

    Each is a random grid whose cells are visited once, in random order, and emptied wherever the solution stays the
    only one, until `clues` remain. A clue that was needed once is needed for good, so that a full pass leaves a
    minimal puzzle: clues = 0 asks for that. good is False where a pass ends with too many clues, or where a minimal
    puzzle cannot be proved so within `budget` nodes.
    """
    size, full = inputs.shape[1], (1 << units.shape[1]) - 1
    stack, branch = np.empty((size + 1, size), np.int32), np.empty((size + 1, 2), np.int32)
    queue, order = np.empty(size, np.int32), np.arange(size)
    stream, scratch = np.empty(1, np.uint64), np.empty(size, np.uint8)
    no, yes, nowhere, one, two, few = (
        np.int64(0), np.int64(1), np.int64(-1), np.int64(1), np.int64(2), np.int64(_GRID_GUESSES))
    for b in range(inputs.shape[0]):
        stream[0] = np.uint64(first + b)
        _below(stream, one)
        stream[0] = (stream[0] ^ (stream[0] >> _S30)) * _MIX1 ^ base
        good[b] = False
        found, starts = 0, 0
        while found != 1 and starts < _GRID_STARTS:
            starts += 1
            for c in range(size):
                stack[0, c] = full
            found, nodes[b] = _search(
                stack, branch, queue, one, few, yes, stream, peers, units, full, labels[b])
        if found != 1:
            continue

        for j in range(size):
            order[j] = j
            inputs[b, j] = labels[b, j]
        for j in range(size - 1, 0, -1):
            k = _below(stream, j + 1)
            order[j], order[k] = order[k], order[j]
        remaining, proved = size, True
        for j in range(size):
            if remaining == clues:
                break
            cell, other = order[j], 0  # other: solutions in which this cell holds another digit
            if _load(stack[0], queue, inputs[b], cell, peers, units, full):
                other, _ = _search(stack, branch, queue, one, budget, no, stream, peers, units, full, scratch)
            if other == 0:
                inputs[b, cell] = 1
                remaining -= 1
            elif other < 0:
                proved = False
        if remaining == clues or (clues == 0 and proved):
            _load(stack[0], queue, inputs[b], nowhere, peers, units, full)
            found, nodes[b] = _search(stack, branch, queue, two, budget, no, stream, peers, units, full, scratch)
            good[b] = found == 1
