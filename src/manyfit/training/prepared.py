"""What goes into a training, built and tried beforehand."""

import copy
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from manyfit.config import code
from manyfit.config.build import build, target_of
from manyfit.config.errors import ConfigError
from manyfit.config.schema import Config, DataConfig
from manyfit.config.shown import as_written
from manyfit.config.trust import targets
from manyfit.data import rows, splits
from manyfit.data.draws import noisy
from manyfit.data.table import Table
from manyfit.losses import Loss
from manyfit.native.machine import compilation, kind_of
from manyfit.native.members import why_not
from manyfit.parallel import devices
from manyfit.population.members import initialised, trainable
from manyfit.schedules import Schedule, torch_schedule
from manyfit.training import trying
from manyfit.training.captured import captures

T = TypeVar("T")
EngineName = Literal["native", "batched", "lightning"]


@dataclass(frozen=True)
class Job:
    """A config with everything it names built and tried on a dummy: what is left to go wrong is the training."""

    config: Config
    data: splits.Dataset
    loss: Loss
    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    schedule: Schedule
    batch_size: int
    engine: EngineName
    weights: int
    curves: tuple[str, ...] = ()
    """Of a LightningModule, the names that it logs under."""
    code: tuple[str, ...] = ()
    """Digests of the files of the user's own that define what the config names, see `code.files`."""

    @property
    def network(self) -> nn.Module:
        """A new one, with the weights that the seed gives: of thousands of jobs they would not be kept for nothing."""
        return _network(self.config, self.data, self.loss)

    @property
    def steps_per_epoch(self) -> int:
        """The last may be of fewer examples."""
        return -(-len(self.data.x_train) // self.batch_size)

    @property
    def fingerprint(self) -> str:
        """Of its config, its data and the user's own code: those of the same command are the same."""
        return _digest(" ".join([identity(self.config), self.data.digest, *self.code]).encode())

    def y_train(self) -> Tensor:
        """Training targets (n,), label noise included."""
        d = self.data
        return noisy(d.y_train, len(d.classes), self.config.data.label_noise, self.config.seed)


def identity(config: Config) -> str:
    """What two configs share that are the same run."""
    return config.model_dump_json(by_alias=True) + config.experiment


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class Preparation:
    """Builds jobs. What several share, their data above all, is read and built once for as long as this lives.

    A run, a sweep and a process that trains what it is sent have one each: what it reads does not change under it.
    """

    def __init__(self) -> None:
        self._table: tuple[str, Table] | None = None  # the last that was read, while jobs are being built
        self._rows: dict[str, int] = {}  # of tables
        self._datasets: dict[str, splits.Dataset] = {}
        self._jobs: dict[str, Job] = {}
        self._code: dict[str, str] = {}  # digests by file, as it was when it had just been imported

    def job(self, config: Config) -> Job:
        """Everything that a config names, built and tried; jobs that differ in their seeds alone share it.

        Raises:
            ValueError: Something in the config cannot be used; the message names the key.
        """
        alike = identity(config.model_copy(update={"seed": 0}))
        if alike not in self._jobs:
            with as_written(config.stands):
                _put(self._jobs, JOBS, alike, self._made(config))
        return replace(self._jobs[alike], config=config)

    def _made(self, config: Config) -> Job:
        data = splits.unread(config.dataset, _source(config.data)) if config.guests.data else self._dataset(config.data)
        made = _guests_job(config, data) if config.guests.model else _job(config, data)
        return replace(made, code=self._code_of(config))

    def _code_of(self, config: Config) -> tuple[str, ...]:
        named = [str(target) for _, target in targets(config.model_dump(by_alias=True))]
        files = code.files([*named, *config.metrics, *config.probes])
        self._code |= {file: _digest(Path(file).read_bytes()) for file in files if file not in self._code}
        return tuple(self._code[file] for file in files)

    def training_rows(self, config: DataConfig) -> int:
        """How many examples there are to train on, whatever `train_size` says."""
        source = _source(config)
        if source not in self._rows:
            self._rows[source] = len(self._read(source).target)
        test = 1 / config.folds if config.folds else config.test_fraction
        return rows.sizes(self._rows[source], config.val_fraction, test)[0]

    def close(self) -> None:
        """No more data are to be split for now: what was read as a table is let go."""
        self._table = None

    def _dataset(self, config: DataConfig) -> splits.Dataset:
        key = config.model_dump_json(by_alias=True)
        if key not in self._datasets:
            made = splits.split(self._read(_source(config)), **config.model_dump(include=SPLIT))
            _put(self._datasets, DATASETS, key, made)
        return self._datasets[key]

    def _read(self, source: str) -> Table:
        if self._table is None or self._table[0] != source:
            self._table = source, build(DataConfig.model_validate_json(source), "data", Table)
        return self._table[1]


WIDE = 10**8  # weights times examples of a step: from here on a lone member is better served by all cores at once
DATASETS, JOBS = 32, 4096  # kept by a preparation; a sweep asks for each of its jobs a few times
SPLIT = {
    "split_seed",
    "val_fraction",
    "test_fraction",
    "train_size",
    "standardise",
    "target_scale",
    "folds",
    "fold",
}  # of a table, not which table


def _put(known: dict[str, T], most: int, key: str, value: T) -> None:
    """Remember it, in the place of the oldest if there are so many."""
    if len(known) >= most:
        known.pop(next(iter(known)))
    known[key] = value


def _source(config: DataConfig) -> str:
    """What says which table it is."""
    usual = {key: DataConfig.model_fields[key].default for key in (*SPLIT, "label_noise")}
    return config.model_copy(update=usual).model_dump_json(by_alias=True)


def prepare(config: Config) -> Job:
    """One job by itself; see `Preparation.job`."""
    (job,) = prepared([config])
    return job


def prepared(given: Sequence[Config | Job]) -> list[Job]:
    """Jobs as they are, and those of configs."""
    preparation = Preparation()
    return [one if isinstance(one, Job) else preparation.job(one) for one in given]


def _job(config: Config, dataset: splits.Dataset) -> Job:
    devices.check(config)
    classes = len(dataset.classes)
    counts = torch.bincount(dataset.y_train, minlength=classes).tolist() if classes else []
    loss = build(config.loss, "loss", Loss, task=dataset.task, classes=classes, counts=counts)
    if loss.task != dataset.task:
        raise ConfigError(
            f"loss must suit the data: {config.loss.target.rsplit('.')[-1]} is for {loss.task}, but got a "
            f"{dataset.task} task. Use loss=auto."
        )
    n = len(dataset.x_train)
    batch_size = n if config.batch_size == "full" else config.batch_size
    if batch_size > n:
        raise ConfigError(
            f"batch_size must be <= {n}, the training examples, but got {batch_size}. Use batch_size=full."
        )
    if batch_size < (world := devices.world(config.trainer)):
        raise ConfigError(f"batch_size must be >= {world}, the devices that share a batch, but got {batch_size}.")
    network = _network(config, dataset, loss)
    if world > 1 and any(True for _ in network.buffers()):
        raise ConfigError(
            "trainer.devices must be 1 with a model that has buffers (batch statistics and the like): they would be of "
            "each device's examples alone."
        )
    trying.require_trainable(config, network, dataset, loss.width(len(dataset.classes)), n % batch_size or batch_size)
    optimizer, options = optimizer_of(config, network)
    captures(config, optimizer)
    schedule = schedule_of(config, -(-n // batch_size))
    engine = _engine(config, network, loss, optimizer, options, batch_size)
    weights = sum(parameter.numel() for parameter in trainable(network))
    return Job(config, dataset, loss, optimizer, options, schedule, batch_size, engine, weights)


def _guests_job(config: Config, dataset: splits.Dataset) -> Job:
    """Of a LightningModule: what it has not is filled in by what says so."""
    from manyfit.training import guest

    devices.check(config)
    return guest.job(config, dataset)


def engine_of(job: Job, state: Mapping[str, Any] | None) -> EngineName:
    """What trains a job, or goes on from the state of a training: the engine that it began with.

    Raises:
        ConfigError: That engine cannot train what the job has become.
    """
    if state is None:
        return job.engine
    name: EngineName = state.get("engine", "batched")  # there was no other
    if "lightning" in (name, job.engine):
        if name != job.engine:
            raise ConfigError(
                f"model must be as it was, but {job.config.model.target} is a LightningModule "
                f"{'no more' if name == 'lightning' else 'now'}. Bring it back, or train a new run."
            )
        return name
    if name == "native" and job.engine != name:
        raise ConfigError(
            "trainer must be one for the native engine, which the run began with: a CPU, one device, 32-true, 64-true. "
            "Use trainer=cpu; a run that is to go on elsewhere begins with trainer.engine=batched."
        )
    if name == "batched" and job.config.trainer.engine == "native":
        raise ConfigError("trainer.engine must be auto or batched, which the run began with, but got 'native'.")
    return name


def dtype_of(config: Config) -> torch.dtype:
    """What its weights and data are kept in."""
    return torch.float64 if config.trainer.precision == "64-true" else torch.float32


def _engine(
    config: Config,
    network: nn.Module,
    loss: Loss,
    optimizer: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    batch_size: int,
) -> EngineName:
    """Which engine trains a config: a function of it and of the width of its data, never of its company."""
    if config.trainer.engine == "batched":
        return "batched"
    asked = config.trainer.engine == "native"
    reason = why_not(network, loss, optimizer, options)
    if devices.kind(config.trainer) != "cpu":
        reason = "it trains on a CPU: use trainer=cpu"
    elif devices.world(config.trainer) > 1:
        reason = "it trains on one device"
    elif config.trainer.precision not in ("32-true", "64-true"):
        reason = f"it knows no trainer.precision={config.trainer.precision}"
    elif not reason and not asked and sum(p.numel() for p in network.parameters()) * batch_size > WIDE:
        reason = "one thread is too few"
    if asked and reason:
        raise ConfigError(f"trainer.engine must be auto or batched here, but got 'native': {reason}.")
    if not reason:
        compilation(kind_of(dtype_of(config)))  # goes on while others are imported
    return "batched" if reason else "native"


def _network(config: Config, dataset: splits.Dataset, loss: Loss) -> nn.Module:
    """In the seed's weights. Rows of numbers are given to a module that asks for `in_features`, else their shape."""
    known = {"in_features": dataset.x_train.shape[1], "in_shape": dataset.shape}
    known["out_features"] = loss.width(len(dataset.classes))
    flat = "in_features" in inspect.signature(target_of(config.model, "model", nn.Module)).parameters
    made = initialised(lambda: build(config.model, "model", nn.Module, **known), config.seed)
    if config.model.weights is not None:
        _load(made, config.model.weights)
    if config.guests.model:  # which is given examples in their shape
        return made
    return made if flat or len(dataset.shape) == 1 else nn.Sequential(nn.Unflatten(1, dataset.shape), made)


def _load(network: nn.Module, file: str) -> None:
    """Put stored weights in, each in its place."""
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(Path(file).expanduser()))
    except Exception as error:  # of the file system, of safetensors, of torch
        reason = "; ".join(line.strip() for line in str(error).splitlines())
        raise ConfigError(
            f"model.weights must be a .safetensors file with all weights of {type(network).__name__} and no others, "
            f"but got {file!r} ({reason})."
        ) from None


def optimizer_of(config: Config, network: nn.Module) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """The optimizer's class and its options apart from lr and weight_decay, tried on a dummy."""
    target = target_of(config.optimizer, "optimizer", torch.optim.Optimizer)
    assert isinstance(target, type)
    if config.optimizer.weight_decay and "weight_decay" not in inspect.signature(target).parameters:
        raise ConfigError(f"optimizer.weight_decay must be 0 with {config.optimizer.target}, which has none.")
    if config.optimizer.arguments.get("maximize"):
        raise ConfigError("optimizer.maximize must be false, but got true: a loss is minimised.")
    params = trainable(copy.deepcopy(network))
    build(config.optimizer, "optimizer", torch.optim.Optimizer, params=params, lr=config.optimizer.lr)
    return target, config.optimizer.arguments


def schedule_of(config: Config, steps_per_epoch: int) -> Schedule:
    """The schedule that a config names."""
    if not config.schedule.target.startswith("torch."):
        return build(config.schedule, "schedule", Schedule)
    cls = target_of(config.schedule, "schedule", torch.optim.lr_scheduler.LRScheduler)
    assert isinstance(cls, type)
    arguments = config.schedule.arguments
    unit = arguments.pop("unit", "epoch")
    return torch_schedule(cls, arguments, unit, config.epochs, steps_per_epoch)
