"""Mazes by search: the compiled kernels that measure, draw paths in, verify and generate mazes (numba).

Inside, a maze is a flat array with a border of walls: w = cols + 2, cell (r, c) lies at (r + 1) * w + c + 1, and the
neighbours of a cell, in the order down, right, up, left, lie at cell + way for way in ways = (w, 1, -w, -1).
A flood is a breadth-first search that also counts, for every cell, the shortest paths to its source. The counts are
floating-point numbers, which are divided by 2**400 for a whole distance at once where they grow too large: only their
ratios within a distance and the number of such divisions matter.

As in sudoku_search: a maze's randomness is a SplitMix64 stream of its own, the kernels release the GIL, and all of
them, the stream included, live in this file because numba's cache notices changes of a kernel's own file only.

Shapes: S cells, B mazes, M = (rows + 2) * (cols + 2); at the doors tokens are 0 pad, '# SGo' = 1..5.
"""

import math

import numpy as np

from trm_jax.puzzles.compiled import jit

WALL, FREE, START, GOAL, PATH = 1, 2, 3, 4, 5

_GAMMA, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31, _S32 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(32)
_LARGE, _LARGE_LOG2, _ULP = 2.0**400, 400.0, 2.0**-53


@jit
def _next(stream):
    """Next 64 bits of a SplitMix64 stream ([1] uint64)."""
    stream[0] += _GAMMA
    z = stream[0]
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


@jit
def _below(stream, k):
    """0 .. k-1, by a product instead of a division: most of the time of a generator goes here and into floods."""
    return np.int64(((_next(stream) >> _S32) * np.uint64(k)) >> _S32)


@jit
def _load(tokens, cols, is_open):
    """tokens [S] -> is_open [M], whose border is never touched; (start, goal), or (-1, -1) unless there is one each."""
    start, goal, starts, goals = -1, -1, 0, 0
    at, col = cols + 3, 0
    for s in range(tokens.shape[0]):
        token = tokens[s]
        is_open[at] = FREE <= token <= GOAL
        if token == START:
            start = at
            starts += 1
        elif token == GOAL:
            goal = at
            goals += 1
        at += 1
        col += 1
        if col == cols:
            col = 0
            at += 2
    if starts != 1 or goals != 1:
        start, goal = -1, -1
    return start, goal


@jit
def _flood(is_open, source, target, ways, queue, dist, count):
    """dist [M] from source (-1: not reached), count [M] of shortest paths; (cells reached, divisions by _LARGE).

    Stops at target: only what lies nearer to source is complete then, and target itself. -1: goes everywhere.
    """
    for cell in range(dist.shape[0]):
        dist[cell] = -1
    dist[source], count[source], queue[0] = 0, 1.0, source
    head, tail, distance, divisions = 0, 1, 0, 0
    while head < tail:
        cell = queue[head]
        if dist[cell] != distance:  # all counts of this distance are complete, and none of the next is begun
            distance = dist[cell]
            most = 0.0
            for j in range(head, tail):
                most = max(most, count[queue[j]])
            if most > _LARGE:
                divisions += 1
                for j in range(head, tail):
                    count[queue[j]] /= _LARGE
        if cell == target:
            break
        head += 1
        for k in range(4):
            other = cell + ways[k]
            if is_open[other]:
                if dist[other] < 0:
                    dist[other], count[other], queue[tail] = distance + 1, count[cell], other
                    tail += 1
                elif dist[other] == distance + 1:
                    count[other] += count[cell]
    return tail, divisions


@jit
def _walk(start, goal, ways, dist, count, at_random, stream, path):
    """A shortest path from start, after a flood from goal: its inner cells go to path [M]; how many.

    at_random: uniformly among all of them. Otherwise: at every step to the cell whose row and column are nearest to
    the goal's (sum of both differences), and among several such ways down, right, up, left, in this order.
    """
    w, cell, length = ways[0], start, 0
    while dist[cell] > 1:
        chosen = start
        if at_random != 0:
            total = 0.0
            for k in range(4):
                if dist[cell + ways[k]] == dist[cell] - 1:
                    total += count[cell + ways[k]]
            left = np.float64(_next(stream) >> _S11) * _ULP * total
            for k in range(4):
                if dist[cell + ways[k]] == dist[cell] - 1:
                    chosen = cell + ways[k]
                    left -= count[chosen]
                    if left < 0.0:
                        break
        else:
            fewest = dist.shape[0]
            for k in range(4):
                other = cell + ways[k]
                if dist[other] == dist[cell] - 1:
                    between = abs(other // w - goal // w) + abs(other % w - goal % w)
                    if between < fewest:
                        chosen, fewest = other, between
        cell = chosen
        path[length] = cell
        length += 1
    return length


@jit
def _draw(path, length, cols, label):
    """Path tokens at the cells path[:length] into label [S]."""
    w = cols + 2
    for j in range(length):
        label[(path[j] // w - 1) * cols + path[j] % w - 1] = PATH


@jit
def paths_range(inputs, cols, ways, at_random, seeds, labels, steps, log2_paths):
    """Of inputs [B, S]: labels [B, S] with a shortest path drawn in, steps [B] from S to G, log2 of their number [B].

    steps is -1 where there is no path or not one S and one G; labels are inputs there. seeds [B] uint64.
    """
    size = (inputs.shape[1] // cols + 2) * (cols + 2)
    is_open, dist, count = np.zeros(size, np.bool_), np.empty(size, np.int32), np.empty(size, np.float64)
    queue, path, stream = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(1, np.uint64)
    for b in range(inputs.shape[0]):
        steps[b], log2_paths[b] = -1, 0.0
        for s in range(inputs.shape[1]):
            labels[b, s] = inputs[b, s]
        start, goal = _load(inputs[b], cols, is_open)
        if start < 0:
            continue
        _, divisions = _flood(is_open, goal, start, ways, queue, dist, count)
        if dist[start] < 0:
            continue
        stream[0] = seeds[b]
        length = _walk(start, goal, ways, dist, count, at_random, stream, path)
        _draw(path, length, cols, labels[b])
        steps[b], log2_paths[b] = length + 1, math.log2(count[start]) + divisions * _LARGE_LOG2


@jit
def verify_range(inputs, answers, cols, ways, kept, path, shortest):
    """What Maze.verify says, of inputs and answers [B, S] uint8."""
    size, w = (inputs.shape[1] // cols + 2) * (cols + 2), cols + 2
    is_open, dist, count = np.zeros(size, np.bool_), np.empty(size, np.int32), np.empty(size, np.float64)
    queue, marked = np.empty(size, np.int32), np.empty(size, np.bool_)
    for b in range(inputs.shape[0]):
        kept[b], path[b], shortest[b] = True, False, False
        start, goal = _load(inputs[b], cols, is_open)
        for cell in range(size):
            marked[cell] = False
        marks, on_free = 0, True
        for s in range(inputs.shape[1]):
            if answers[b, s] == PATH:
                marks += 1
                marked[(s // cols + 1) * w + s % cols + 1] = True
                if inputs[b, s] != FREE:
                    kept[b], on_free = False, False
            elif answers[b, s] != inputs[b, s]:
                kept[b] = False
        if start < 0 or not on_free:
            continue
        marked[start], marked[goal] = True, True
        before, cell, left = -1, start, marks + 1  # left: cells that the walk has yet to enter
        while True:
            onward, following = 0, -1
            for k in range(4):
                other = cell + ways[k]
                if marked[other] and other != before:
                    onward += 1
                    following = other
            if cell == goal or onward != 1 or left == 0:
                path[b] = cell == goal and onward == 0 and left == 0
                break
            before, cell = cell, following
            left -= 1
        if path[b]:
            _flood(is_open, goal, start, ways, queue, dist, count)
            shortest[b] = dist[start] == marks + 1


@jit
def generate_range(first, base, cols, ways, walls, min_length, single, tries, failed, inputs, labels, steps,
                   log2_paths):
    """Mazes number first, first + 1, ... into inputs, labels [B, S], steps [B], log2_paths [B].

    Each is drawn anew until some cell is more than min_length steps from its start, at most `tries` times; where that
    is not enough, failed[0] is set, which ends this and all other calls that share it.
    walls: (fewest, most), [2]. single: then walls are added until one shortest path, drawn uniformly, is left.
    """
    size, S, w = (inputs.shape[1] // cols + 2) * (cols + 2), inputs.shape[1], cols + 2
    is_open, count = np.zeros(size, np.bool_), np.empty(size, np.float64)
    dist, to_start = np.empty(size, np.int32), np.empty(size, np.int32)
    queue, order, path = np.empty(size, np.int32), np.empty(S, np.int64), np.empty(size, np.int32)
    stream, on_path = np.empty(1, np.uint64), np.empty(size, np.bool_)
    one, nowhere, no, yes = np.int64(1), np.int64(-1), np.int64(0), np.int64(1)
    for b in range(inputs.shape[0]):
        stream[0] = np.uint64(first + b)
        _below(stream, one)
        stream[0] = (stream[0] ^ (stream[0] >> _S30)) * _MIX1 ^ base
        for s in range(S):
            order[s] = (s // cols + 1) * w + s % cols + 1
            is_open[order[s]] = True
        start, goal, closed = nowhere, nowhere, np.int64(0)
        for _ in range(tries):
            if failed[0]:
                return
            for j in range(closed):
                is_open[order[j]] = True
            closed = walls[0] + _below(stream, walls[1] - walls[0] + 1)
            for j in range(closed):
                k = j + _below(stream, S - j)
                order[j], order[k] = order[k], order[j]
                is_open[order[j]] = False
            start = order[closed + _below(stream, S - closed)]
            reached, _ = _flood(is_open, start, nowhere, ways, queue, dist, count)
            if dist[queue[reached - 1]] > min_length:
                nearest = reached - 1  # the first of the queue, which ascends, that is far enough
                while dist[queue[nearest - 1]] > min_length:
                    nearest -= 1
                goal = np.int64(queue[nearest + _below(stream, reached - nearest)])
                break
        if goal < 0:
            failed[0] = True
            return

        _, divisions = _flood(is_open, goal, start, ways, queue, dist, count)
        if single:
            for cell in range(size):
                on_path[cell] = False
            for j in range(_walk(start, goal, ways, dist, count, yes, stream, path)):
                on_path[path[j]] = True
            while count[start] != 1.0 or divisions > 0:
                _flood(is_open, start, nowhere, ways, queue, to_start, count)
                others = 0  # cells of other shortest paths, which the queue is free to hold now
                for cell in range(size):
                    if dist[cell] > 0 and to_start[cell] > 0 and dist[cell] + to_start[cell] == dist[start] \
                            and not on_path[cell]:
                        queue[others] = cell
                        others += 1
                is_open[queue[_below(stream, np.int64(others))]] = False
                _, divisions = _flood(is_open, goal, start, ways, queue, dist, count)
        for s in range(S):
            cell = (s // cols + 1) * w + s % cols + 1
            inputs[b, s] = START if cell == start else GOAL if cell == goal else FREE if is_open[cell] else WALL
            labels[b, s] = inputs[b, s]
        length = _walk(start, goal, ways, dist, count, no, stream, path)
        _draw(path, length, cols, labels[b])
        steps[b], log2_paths[b] = length + 1, math.log2(count[start]) + divisions * _LARGE_LOG2
