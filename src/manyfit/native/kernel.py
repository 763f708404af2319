"""The training of one member as compiled code: forward pass, dropout, loss, backpropagation and update.

A network is a program: for each layer a row (kind, width in, width out, place) of ints. `LAYER`, of dense weights,
begins a block; what follows changes the block's outputs one by one, and multiplies the slopes that backpropagation
needs. Block 0 is the input.
"""

from typing import Any

import numpy as np
from numba import types

from manyfit.native.activations import activate
from manyfit.native.compiled import Ints, Real, Reals, at, compiled, copy, flushing, grid, part, real
from manyfit.native.losses import loss_and_gradient
from manyfit.native.optimizers import update
from manyfit.native.products import multiply, norm, transpose
from manyfit.native.tables import ACTIVATION, CALL, DROPOUT, EVALUATE, FLOATS, GRADIENT, INTEGERS, LAYER, PRELU, TRAIN

OF_INTEGERS, OF_FLOATS = len(INTEGERS), len(FLOATS)


@compiled
def mixed(x: Any) -> Any:
    """Two multiply-xorshift rounds on 32 bits, a bijection with full avalanche. Source: Wellons 2018, lowbias32."""
    x = np.uint32(x)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@compiled
def key_of(stream: int, step: int) -> Any:
    """The key of a layer's mask at a step. Source: Steele 2014, SplitMix64."""
    z = np.uint64(stream) + np.uint64(step) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint32((z ^ (z >> np.uint64(31))) >> np.uint64(32))


@compiled
def drop(key: Any, threshold: float, scale: float, slope: Reals, n: int) -> None:
    """Slope (n,) is 0 where a hash says so, else the scale: dropout."""
    zero, kept, least = real(0, slope), real(scale, slope), np.int32(threshold)
    for i in range(n // 2):
        h = mixed(np.uint32(mixed(np.uint32(i)) ^ np.uint32(key)))  # one for two elements
        slope[2 * i] = kept if np.int32(np.int16(np.uint16(h))) >= least else zero
        slope[2 * i + 1] = kept if np.int32(np.int16(np.uint16(h >> np.uint32(16)))) >= least else zero
    if n % 2:
        h = mixed(np.uint32(mixed(np.uint32(n // 2)) ^ np.uint32(key)))
        slope[n - 1] = kept if np.int32(np.int16(np.uint16(h))) >= least else zero


@compiled
def forward(
    program: Ints,
    values: Reals,
    w: Reals,
    a: Reals,
    d: Reals,
    p: Reals,
    slope: Reals,
    rows: int,
    streams: Ints,
    dropout: Reals,
    step: int,
    slopes: bool,
) -> int:
    """From inputs a[0] to the outputs, in a of the last block, which is returned.

    Args:
        program: (layers, 4).
        values: An option of each, (layers,).
        w: Weights (parameters,): of each dense layer (in, out), and its bias.
        a: Activations (blocks, rows * width).
        d: Their derivative by the products of the block, likewise.
        p: That by the slope of a PReLU, likewise.
        slope: Working space (rows * width,).
        rows: Examples.
        streams: (drops,).
        dropout: (drops, 2).
        step: Whose masks; 0: none.
        slopes: Whether d and p are wanted.
    """
    block, size, has, straight = 0, rows * program[0, 1], False, False
    for o in range(len(program)):
        kind, inputs, outputs, place = program[o, 0], program[o, 1], program[o, 2], program[o, 3]
        if kind == LAYER:
            if slopes and straight:
                _ones(part(d, block * d.shape[1], size))
            block, size, has, straight = block + 1, rows * outputs, False, True
            z, bias = grid(a, block * a.shape[1], rows, outputs), part(w, place + inputs * outputs, outputs)
            for r in range(rows):
                for j in range(outputs):
                    z[r, j] = bias[j]
            before, weights = part(a, (block - 1) * a.shape[1], rows * inputs), part(w, place, inputs * outputs)
            multiply(before, inputs, 1, weights, part(z, 0, size), rows, inputs, outputs, False)
            continue
        if kind == DROPOUT and (step == 0 or dropout[place, 1] == 1):
            continue
        out, derivative = part(a, block * a.shape[1], size), part(d, block * d.shape[1], size)
        own, of_slope = derivative if straight else part(slope, 0, size), part(p, block * p.shape[1], size)
        if kind == PRELU:
            _prelu(w[place], out, own, of_slope)
        elif kind == DROPOUT:
            drop(key_of(streams[place], step), dropout[place, 0], dropout[place, 1], own, size)
            for e in range(size):
                out[e] *= own[e]
        else:
            activate(kind - ACTIVATION, values[o], out, own)
        if not slopes:
            continue
        for e in range(size if has else 0):
            of_slope[e] *= own[e]
        has = has or kind == PRELU
        for e in range(0 if straight else size):
            derivative[e] *= own[e]
        straight = False
    if slopes and straight:
        _ones(part(d, block * d.shape[1], size))
    return block


@compiled
def _ones(v: Reals) -> None:
    one = real(1, v)
    for e in range(len(v)):
        v[e] = one


@compiled
def _prelu(below: Real, out: Reals, slope: Reals, of_slope: Reals) -> None:
    """`z` above 0, else `below z`. Source: He et al. 2015, eq. 1."""
    zero, one = real(0, out), real(1, out)
    for e in range(len(out)):
        of_slope[e] = zero if out[e] > zero else out[e]
        slope[e] = one if out[e] > zero else below
        out[e] *= slope[e]


@compiled
def backward(
    program: Ints,
    w: Reals,
    gradient: Reals,
    a: Reals,
    d: Reals,
    p: Reals,
    spare: Reals,
    turned: Reals,
    rows: int,
    block: int,
) -> None:
    """From the gradient by the outputs, in a[block], to that by the weights.

    Args:
        program: As for `forward`; w, a, d, p and rows likewise.
        w: See there.
        gradient: Written, (parameters,).
        a: See there.
        d: See there.
        p: See there.
        spare: Working space (2, rows * width).
        turned: Working space for the weights of a layer.
        rows: See there.
        block: The last.
    """
    g = part(a, block * a.shape[1], a.shape[1])
    for o in range(len(program) - 1, -1, -1):
        kind, inputs, outputs, place = program[o, 0], program[o, 1], program[o, 2], program[o, 3]
        if kind == PRELU:
            of_slope, total = part(p, block * p.shape[1], rows * inputs), real(0, w)
            for e in range(rows * inputs):
                total += g[e] * of_slope[e]
            gradient[place] = total
        elif kind == LAYER:
            derivative = part(d, block * d.shape[1], rows * outputs)
            for e in range(rows * outputs):
                g[e] *= derivative[e]
            above, of_bias = grid(g, 0, rows, outputs), part(gradient, place + inputs * outputs, outputs)
            for j in range(outputs):
                of_bias[j] = real(0, w)
            for r in range(rows):
                for j in range(outputs):
                    of_bias[j] += above[r, j]
            block -= 1
            x, of_weights = part(a, block * a.shape[1], rows * inputs), part(gradient, place, inputs * outputs)
            multiply(x, 1, inputs, g, of_weights, inputs, rows, outputs, True)
            if block == 0:
                return
            transpose(part(w, place, inputs * outputs), inputs, outputs, turned)
            below = part(spare, block % 2 * spare.shape[1], spare.shape[1])
            multiply(g, outputs, 1, turned, below, rows, outputs, inputs, True)
            g = below


@compiled
def _angle(w: Reals, before: Reals, last: Reals, floats: Reals) -> None:
    """After a step from `before` to w: the cosine of its update with the last one, which it replaces."""
    square, dot = 0.0, 0.0
    for i in range(len(w)):
        change = w[i] - before[i]
        square += np.float64(change) * np.float64(change)
        dot += np.float64(change) * np.float64(last[i])
        last[i] = change
    if square * floats[FLOATS.square] > 0:
        floats[FLOATS.cosines] += dot / (np.sqrt(square) * np.sqrt(floats[FLOATS.square]))
        floats[FLOATS.angles] += 1
    floats[FLOATS.square] = square


def entry(kind: Any) -> Any:
    """What is called, with the address of `Call`, for float32 or float64 (types of Numba)."""

    def call(table: Any) -> None:
        mode, width = table[CALL.mode], table[CALL.features]
        members, all_integers = at(types.int64, table[CALL.members]), at(types.int64, table[CALL.integers])
        all_floats, all_values = at(types.float64, table[CALL.floats]), at(types.float64, table[CALL.values])
        programs, layers = at(types.int64, table[CALL.programs]), table[CALL.layers]
        all_weights, most = at(kind, table[CALL.weights]), table[CALL.parameters]
        all_moments, kept = at(kind, table[CALL.moments]), table[CALL.kept]
        x, y = at(kind, table[CALL.x]), at(kind, table[CALL.y])
        order, longest = at(types.int64, table[CALL.order]), table[CALL.longest]
        rates, scratch = at(types.float64, table[CALL.rates]), at(kind, table[CALL.scratch])
        all_streams, drops = at(types.int64, table[CALL.streams]), table[CALL.drops]
        all_dropout = at(types.float64, table[CALL.dropout])
        all_classes, most_classes = at(types.float64, table[CALL.class_weights]), table[CALL.classes]
        gradients, updates = at(kind, table[CALL.gradients]), at(kind, table[CALL.updates])
        before_call = flushing(-1)
        for i in range(table[CALL.todo]):
            k = members[i]
            integers, floats = (
                part(all_integers, k * OF_INTEGERS, OF_INTEGERS),
                part(all_floats, k * OF_FLOATS, OF_FLOATS),
            )
            batch, count = integers[INTEGERS.batch], integers[INTEGERS.weights]
            blocks, size = integers[INTEGERS.blocks], batch * integers[INTEGERS.widest]
            a, d = grid(scratch, 0, blocks, size), grid(scratch, blocks * size, blocks, size)
            p, free = grid(scratch, 2 * blocks * size, blocks, size), 3 * blocks * size
            spare, slope = grid(scratch, free, 2, size), part(scratch, free + 2 * size, size)
            targets, free = part(scratch, free + 3 * size, batch), free + 3 * size + batch
            turned = part(scratch, free, integers[INTEGERS.largest])
            before = part(scratch, free + integers[INTEGERS.largest], count)
            program = grid(programs, k * layers * 4, integers[INTEGERS.length], 4)
            values, w = part(all_values, k * layers, layers), part(all_weights, k * most, count)
            moments = grid(all_moments, k * kept * most, kept, most)
            free += integers[INTEGERS.largest] + count
            own = part(scratch, free, count)
            gradient = part(gradients, k * most, count) if mode == GRADIENT else own
            classes = part(all_classes, k * most_classes, most_classes)
            streams, dropout = part(all_streams, k * drops, drops), grid(all_dropout, 2 * k * drops, drops, 2)
            own_y, own_order = integers[INTEGERS.targets], integers[INTEGERS.order] * longest
            width_out = program[0, 1]
            for o in range(len(program)):
                width_out = program[o, 2]
            for s in range(integers[INTEGERS.steps]):
                start = (integers[INTEGERS.first] + s) * batch
                rows = min(batch, integers[INTEGERS.visited] - start)
                for r in range(rows):
                    example = order[own_order + start + r]
                    targets[r] = y[own_y + example]
                    copy(a, r * width, x, example * width, width)
                t = integers[INTEGERS.done] + 1
                step = t if mode == TRAIN else 0
                last = forward(program, values, w, a, d, p, slope, rows, streams, dropout, step, mode != EVALUATE)
                z = grid(a, last * size, rows, width_out)
                loss, score = loss_and_gradient(
                    integers[INTEGERS.loss], floats[FLOATS.loss_option], classes, z, part(targets, 0, rows)
                )
                if mode == EVALUATE:
                    floats[FLOATS.loss] += loss
                    floats[FLOATS.score] += score
                    continue
                share = real(1 / rows, w)
                for r in range(rows):
                    for j in range(width_out):
                        z[r, j] *= share
                backward(program, w, gradient, a, d, p, spare, turned, rows, last)
                if mode == GRADIENT:
                    continue
                floats[FLOATS.running] += loss
                if floats[FLOATS.clip] > 0:
                    factor = floats[FLOATS.clip] / (norm(gradient) + 1e-6)
                    if not factor >= 1:
                        for j in range(count):
                            gradient[j] *= real(factor, w)
                if table[CALL.updates] != 0:
                    for j in range(count):
                        before[j] = w[j]
                update(
                    integers[INTEGERS.optimizer],
                    part(floats, FLOATS.options, 4),
                    w,
                    gradient,
                    moments,
                    part(floats, FLOATS.momenta, 1),
                    t,
                    rates[integers[INTEGERS.rates] + s],
                    floats[FLOATS.weight_decay],
                    integers[INTEGERS.decoupled] != 0,
                )
                if table[CALL.updates] != 0:
                    _angle(w, before, part(updates, k * most, count), floats)
                integers[INTEGERS.done] = t
                if loss != loss and w[count - 1] != w[count - 1]:  # and so is all that comes, for ever
                    integers[INTEGERS.done] += integers[INTEGERS.steps] - s - 1
                    break
        flushing(before_call)

    return call
