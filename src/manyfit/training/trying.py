"""A network before there is a run, tried on a few examples with its probes and metrics: what is wrong, in words."""

import copy
from typing import get_args

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from manyfit import measures
from manyfit.config.build import place_of
from manyfit.config.errors import ConfigError
from manyfit.config.guest import is_lightnings
from manyfit.config.schema import Config, ProbeName
from manyfit.data.splits import Dataset
from manyfit.models import answers, inside, own_units
from manyfit.population import dense
from manyfit.population.members import trainable

TRIED = 512  # validation examples that metrics are tried on
TAKEN = ("loss", "accuracy", "rmse", "r2", "lr", "time", "progress", "best", *get_args(ProbeName))  # by other metrics


def require_trainable(config: Config, network: nn.Module, dataset: Dataset, width: int, last: int) -> None:
    """Try it.

    Args:
        config: Of the run.
        network: Any state: nothing of it changes.
        dataset: What it is to be trained on.
        width: Outputs that the loss needs.
        last: Examples of an epoch's last batch.

    Raises:
        ConfigError: It cannot be trained so, or a probe or metric means nothing for it.
    """
    _try_network(network, dataset, width, last)
    _try_names(config)
    _try_probes(config, network, dataset)
    _try_metrics(config, network, dataset)


def _try_names(config: Config) -> None:
    """Refuse two curves of one name."""
    own = [measures.called(name) for name in (*config.metrics, *(name for name in config.probes if "." in name))]
    for name in own:
        if name in TAKEN or own.count(name) > 1:
            raise ConfigError(f"metrics and probes must have names of their own, but got {name!r} besides another.")


def _try_probes(config: Config, network: nn.Module, dataset: Dataset) -> None:
    """Refuse a probe that means nothing for this model, or a function of the user's that makes no numbers of it."""
    names = config.probes
    layers = sum(isinstance(layer, nn.Linear) for layer in network.modules())
    if "dead_units" in names and not (dense.is_dense(network) and layers > 1):
        raise ConfigError("probes must hold dead_units only with hidden dense layers. Use model=mlp, or leave it out.")
    if "gradient_norm" in names and not any(parameter.ndim > 1 for parameter in network.parameters()):
        raise ConfigError("probes must hold gradient_norm only with a model that has weight matrices. Leave it out.")
    for name in (name for name in names if "." in name):
        function, x, y = measures.function_of(name, "probes", config.trusted), dataset.x_train, dataset.y_train
        try:
            measures.numbers(measures.called(name), function, copy.deepcopy(network).eval(), x[:TRIED], y[:TRIED])
        except Exception as error:
            raise ConfigError(
                f"probes: {name} must make a number, or numbers by name, of a network, x and y, but says: "
                f"{type(error).__name__}: {error}{place_of(error)}."
            ) from error


def _try_metrics(config: Config, network: nn.Module, dataset: Dataset) -> None:
    """Refuse a metric that cannot be measured on outputs such as these."""
    if not config.metrics:
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        z = network.eval()(dataset.x_val[:TRIED])
        outputs = answers(z, dataset)
        y = dataset.y_val[:TRIED] if dataset.classes else own_units(dataset.y_val[:TRIED], dataset)
        for name in config.metrics:
            function = measures.measure(name, dataset.task, len(dataset.classes), config.trusted)
            measures.tried(name, function, outputs if dataset.classes else outputs[:, 0], y)


def _try_network(network: nn.Module, dataset: Dataset, width: int, last: int) -> None:
    """Evaluate two rows, and train on as many as the last batch of an epoch has."""
    if any(is_lightnings(type(module)) for module in network.modules()):
        raise ConfigError(
            "model must hold no LightningModule, whose training_step would never be called, but got one within "
            f"{type(network).__name__}. Name it by itself, as model._target_."
        )
    shape = ", ".join(["rows", *map(str, dataset.shape)])
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        raise ConfigError(
            "model must have its weights from the start, but some layer, such as LazyLinear, makes them of the first "
            "examples. Give it its width: in_features, or in_shape."
        )
    if not trainable(network):
        raise ConfigError("model must have parameters to train, but all have requires_grad=False, or there are none.")
    with torch.no_grad(), torch.random.fork_rng(devices=[]), inside(network) as layer:
        try:
            got = tuple(network.eval()(dataset.x_train[:2]).shape)
            copy.deepcopy(network).train()(dataset.x_train[:last])
        except Exception as error:
            raise ConfigError(
                f"model must map ({shape}), also {last} rows, an epoch's last batch, but{layer()} says: {error}"
                f"{place_of(error)}."
            ) from error
    if got != (len(dataset.x_train[:2]), width):
        raise ConfigError(f"model must map ({shape}) to (rows, {width}), but 2 rows gave a shape of {got}.")
