"""What a call of the kernel is told, and how its tables are laid out: each name is the number of its place."""

from typing import NamedTuple


class Call(NamedTuple):
    """Addresses and sizes, int64. A table has a row for each member."""

    mode: int  # TRAIN, GRADIENT or EVALUATE
    members: int  # int64 (todo,): which, one after the other
    todo: int  # how many
    integers: int  # int64, see `Integers`
    floats: int  # float64, see `Floats`
    programs: int  # int64 (layers, 4)
    values: int  # float64 (layers,): an option of each layer
    layers: int
    weights: int  # real (parameters,)
    parameters: int
    moments: int  # real (kept, parameters)
    kept: int
    x: int  # real (examples, features), the same for all
    features: int
    y: int  # real (targets,), likewise
    order: int  # int64 (orders, longest), likewise: numbers of examples
    longest: int
    rates: int  # float64, of all steps of all members
    streams: int  # int64 (drops,): of the masks
    dropout: int  # float64 (drops, 2): the threshold of the hash, and what is left is multiplied by
    drops: int
    class_weights: int  # float64 (classes,): what the loss of an example of each is multiplied by
    classes: int  # at least 2
    gradients: int  # real (parameters,)
    updates: int  # real (parameters,): the last update, for the angle; 0: not asked for
    scratch: int  # real: working space


class Integers(NamedTuple):
    """Of a member, int64."""

    loss: int
    optimizer: int
    decoupled: int  # whether weight decay shrinks the weights, instead of being added to the gradient
    batch: int
    length: int  # of the program
    blocks: int  # dense layers, and the input
    widest: int  # block
    largest: int  # dense layer: its weights
    weights: int  # and biases
    targets: int  # what is added to the number of an example: the place of its target in y
    order: int  # row of order
    visited: int  # numbers of it
    first: int  # step within the epoch
    steps: int
    rates: int  # where they start
    done: int  # steps of training in all, counted as they are taken


class Floats(NamedTuple):
    """Of a member, float64."""

    loss_option: int  # Huber's delta; of classes the share of a target that is spread over all
    weight_decay: int
    clip: int  # largest norm of a gradient; 0: any
    options: int  # of the optimizer, four
    option_2: int
    option_3: int
    option_4: int
    momenta: int  # NAdam's product of its momenta so far
    running: int  # sum over examples of the loss in training
    loss: int  # sum over examples of the loss in evaluation
    score: int  # of those classified right, or of squared errors
    square: int  # of the last update
    cosines: int  # of successive updates, added up
    angles: int  # how many


CALL = Call(*range(len(Call._fields)))
INTEGERS = Integers(*range(len(Integers._fields)))
FLOATS = Floats(*range(len(Floats._fields)))
TRAIN, GRADIENT, EVALUATE = range(3)
LAYER, PRELU, DROPOUT, ACTIVATION = range(4)  # what a row of a program begins with; ACTIVATION + its code
RELU, LEAKY_RELU, TANH, SIGMOID, SILU, GELU = range(6)
CROSS_ENTROPY, BCE, SQUARED_PROBABILITY, MSE, HUBER = range(5)
SGD, ADAM, NADAM, RADAM, ADAMAX, ADAGRAD, ADADELTA, RMSPROP = range(8)
