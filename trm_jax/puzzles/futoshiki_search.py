"""Futoshiki by search: the compiled kernels that solve and generate (numba, no threads of their own).

A cell holds a bit mask of its candidates: bit d - 1 set means that digit d is still possible. Propagation takes a
cell's only digit from its row and column, and by each sign what is too large or too small from the two cells beside
it; what is left is settled by depth-first search on the cell with the fewest candidates. Randomness is a SplitMix64
stream of (seed, number), so that a puzzle does not depend on how many others are made.

Shapes: n the side, C = n * n cells. signs: int64 [2, C], what stands right of a cell and below it: -1 where the cell
is the smaller one of the two, 1 where it is the greater one, 0 where there is no sign.
"""

import numpy as np

from trm_jax.puzzles.compiled import jit

_GAMMA, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S33 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(33)


@jit
def _below(stream, k):
    """Next number of a SplitMix64 stream ([1] uint64), reduced to 0..k-1."""
    stream[0] += _GAMMA
    z = stream[0]
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return np.int64((z ^ (z >> _S31)) >> _S33) % k


@jit
def _below_highest(mask):
    """All bits under the highest one of a mask."""
    bit = 1
    while bit * 2 <= mask:
        bit *= 2
    return bit - 1


@jit
def _narrow(cand, signs, n):
    """Takes away what cannot be, in place, to the fixed point; False on a contradiction."""
    moved = True
    while moved:
        moved = False
        for cell in range(n * n):
            mask = cand[cell]
            if mask == 0:
                return False
            row, col = cell // n, cell % n
            if mask & (mask - 1) == 0:
                for k in range(n):
                    for peer in (row * n + k, k * n + col):
                        if peer != cell and cand[peer] & mask:
                            cand[peer] ^= mask
                            if cand[peer] == 0:
                                return False
                            moved = True
            for way in range(2):
                sign = signs[way, cell]
                if sign:
                    other = cell + (1 if way == 0 else n)
                    small, great = (cell, other) if sign < 0 else (other, cell)
                    low = cand[small] & -cand[small]
                    larger = cand[great] & ~(2 * low - 1)
                    smaller = cand[small] & _below_highest(cand[great])
                    if larger == 0 or smaller == 0:
                        return False
                    if larger != cand[great] or smaller != cand[small]:
                        cand[great], cand[small] = larger, smaller
                        moved = True
    return True


@jit
def _search(stack, signs, n, limit, budget, shuffle, stream, answer):
    """(solutions of stack[0], up to `limit`; -1: the budget of guesses was spent; guesses). answer: the first one."""
    count, guesses, depth = 0, 0, 0
    alive = _narrow(stack[0], signs, n)
    while True:
        if alive:
            cell, fewest = -1, n + 1
            for c in range(n * n):
                options = 0
                mask = stack[depth, c]
                while mask:
                    mask &= mask - 1
                    options += 1
                if 1 < options < fewest:
                    cell, fewest = c, options
            if cell < 0:
                if count == 0:
                    for c in range(n * n):
                        answer[c] = stack[depth, c]
                count += 1
                if count >= limit:
                    return count, guesses
                alive = False
        if not alive:
            depth -= 1
            if depth < 0:
                return count, guesses
            alive = _narrow(stack[depth], signs, n)
            continue
        guesses += 1
        if guesses > budget:
            return -1, guesses
        mask = stack[depth, cell]
        for _ in range(_below(stream, fewest) if shuffle else 0):
            mask &= mask - 1
        bit = mask & -mask
        for c in range(n * n):
            stack[depth + 1, c] = stack[depth, c]
        stack[depth + 1, cell] = bit
        stack[depth, cell] ^= bit
        depth += 1
        alive = _narrow(stack[depth], signs, n)


@jit
def _start(stack, digits, n):
    for c in range(n * n):
        stack[0, c] = 1 << (digits[c] - 1) if digits[c] else (1 << n) - 1


@jit
def _digit(mask):
    digit = 0
    while mask:
        mask >>= 1
        digit += 1
    return digit


@jit
def solve_range(digits, signs, n, limit, budget, counts, answers):
    """digits int64 [B, C] (0: open), signs [B, 2, C] -> counts [B], answers [B, C] (the first one; 0: none)."""
    stack, masks = np.empty((n * n + 1, n * n), np.int64), np.zeros(n * n, np.int64)
    stream = np.zeros(1, np.uint64)
    for i in range(len(digits)):
        _start(stack, digits[i], n)
        counts[i], _ = _search(stack, signs[i], n, limit, budget, False, stream, masks)
        for c in range(n * n):
            answers[i, c] = _digit(masks[c]) if counts[i] > 0 else 0


@jit
def generate_range(first, base, n, givens, budget, digits, signs, answers, guesses):
    """Puzzles number first, first + 1, ... of which nothing can be spared, but for `givens` digits that are added."""
    C = n * n
    stack, masks = np.empty((C + 1, C), np.int64), np.zeros(C, np.int64)
    stream, order = np.zeros(1, np.uint64), np.empty(3 * C, np.int64)
    for i in range(len(digits)):
        stream[0] = base + np.uint64(first + i) * _MIX1
        digits[i] = 0
        signs[i] = 0
        _start(stack, digits[i], n)
        _search(stack, signs[i], n, 1, 1 << 40, True, stream, masks)
        for c in range(C):
            answers[i, c] = digits[i, c] = _digit(masks[c])
        for c in range(C):
            if c % n < n - 1:
                signs[i, 0, c] = 1 if answers[i, c] > answers[i, c + 1] else -1
            if c // n < n - 1:
                signs[i, 1, c] = 1 if answers[i, c] > answers[i, c + n] else -1
        for k in range(3 * C):  # digits go first, in random order, then signs
            low = 0 if k < C else C
            j = low + _below(stream, k - low + 1)
            order[k] = order[j]
            order[j] = k
        for k in range(3 * C):
            item = order[k]
            kept = digits[i, item] if item < C else signs[i, item // C - 1, item % C]
            if kept == 0:
                continue
            if item < C:
                digits[i, item] = 0
            else:
                signs[i, item // C - 1, item % C] = 0
            _start(stack, digits[i], n)
            found, _ = _search(stack, signs[i], n, 2, budget, False, stream, masks)
            if found != 1:
                if item < C:
                    digits[i, item] = kept
                else:
                    signs[i, item // C - 1, item % C] = kept
        added = 0
        for k in range(C):
            if added < givens and digits[i, order[k]] == 0:
                digits[i, order[k]] = answers[i, order[k]]
                added += 1
        _start(stack, digits[i], n)
        _, guesses[i] = _search(stack, signs[i], n, 2, budget, False, stream, masks)
