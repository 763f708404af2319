"""What Hydra builds from its own part of a config, or hands to Python's logging, judged before it does."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from manyfit.config.errors import ConfigError
from manyfit.config.schema import flattened
from manyfit.config.shown import MARK
from manyfit.config.trust import require_there, require_trusted, targets

PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")  # which Hydra has imported already, or refuses
BUILT = ("hydra.callbacks", "hydra.launcher", "hydra.sweeper")  # by Hydra, with what interpolations stand for
LOGGINGS = ("hydra.job_logging", "hydra.hydra_logging")
LOGGED = re.compile(  # what a logging config may have
    r"(version|disable_existing_loggers|formatters|handlers|loggers|root"
    r"|formatters\.[^.]+\.(format|datefmt|style)"
    r"|handlers\.[^.]+\.(class|formatter|level|stream|filename|mode)"
    r"|(root|loggers\..+)\.(level|handlers|propagate))"
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
HANDLERS = ("logging.StreamHandler", "logging.FileHandler")
NAME, LOG = "${hydra.job.name}", re.compile(r"\$\{hydra\.runtime\.output_dir\}/[\w-]+\.log")
LISTS = ("grids", "tune_beside", "sweep.space", "hydra.sweeper.params")  # what files say of the jobs of a sweep


def require_harmless(cfg: DictConfig) -> None:
    """Raise ConfigError if Hydra's part of a composed config names what is not to be trusted."""
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    node = tree["hydra"]
    _require_written_out(node)
    for key, target in targets(node, "hydra"):
        if key in ("hydra.launcher._target_", "hydra.sweeper._target_") and str(target).startswith(PLUGINS):
            continue
        require_trusted(str(target), key, cfg.trusted)
        require_there(str(target), key)
    job = node.get("job") or {}
    for key, must, got in _wrong(node, str(job.get("name"))):
        raise ConfigError(f"{key} must {must}, but got {got!r}. Leave it out.")
    if job.get("env_set"):
        raise ConfigError(f"hydra.job.env_set must be empty, but got {', '.join(job['env_set'])}. Set it in the shell.")
    if job.get("chdir"):
        raise ConfigError("hydra.job.chdir must be false, since modules in the working directory are trusted.")


def require_vouched(cfg: DictConfig, said: Sequence[Override]) -> None:
    """Raise ConfigError if a file says what is trusted, or what Hydra does, of its own job: only the command may.

    Args:
        cfg: As composed.
        said: On the command line.
    """
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    vouched = [override.value() for override in said if override.key_or_group == "trusted"]
    if (got := tree.get("trusted") or []) != ((vouched[-1] if vouched else None) or []):
        raise ConfigError(
            f"trusted must be given on the command line, and by no file, but got {got!r}. If you trust it: "
            f"trusted=[{','.join(map(str, got))}]."
        )
    for place in LISTS:
        node = OmegaConf.select(cfg, place)
        for key in (str(key) for part in (node if OmegaConf.is_list(node) else [node or {}]) for key in part or {}):
            if re.split(r"[.@/:]", key.strip("+~ "))[0].strip() in ("trusted", "hydra"):
                raise ConfigError(f"{place} must leave out {key}, which only the command line may say.")


def require_own_folders(loader: ConfigLoader) -> None:
    """Raise ConfigError if config.yaml adds a package to the folders of options: it would be imported."""
    main = loader.repository.load_config("config")  # type: ignore[attr-defined]  # of Hydra's one loader
    for place in (OmegaConf.select(main.config, "hydra.searchpath") or []) if main else []:
        if str(place).startswith("pkg:"):
            raise ConfigError(f"hydra.searchpath must be of folders, file://..., but got {place}. Leave it out.")


def _require_written_out(node: Any) -> None:
    """What is looked up only when it is used was not judged."""
    for place, value in flattened(node, "hydra"):
        for own in (*BUILT, *LOGGINGS, "hydra.job.env_set", "hydra.job.name", "hydra.job.chdir"):
            inside, around = f"{place}.".startswith(f"{own}."), f"{own}.".startswith(f"{place}.")
            if (around or (inside and own not in LOGGINGS)) and MARK in str(value):
                raise ConfigError(f"{place} must be written out, but got {value}.")


def _wrong(node: Mapping[str, Any], name: str) -> Iterator[tuple[str, str, Any]]:
    """What logging would import, send, or write to, beyond a terminal and a log of this name among the job's files."""
    for logging in LOGGINGS:
        for place, value in flattened(node.get(logging.partition(".")[2]) or {}, ""):
            key, last, text = f"{logging}.{place}", place.rpartition(".")[2], str(value)
            if place and not LOGGED.fullmatch(place):
                yield key, "be a plain key of a logger, a formatter, a StreamHandler or a FileHandler", value
            elif last == "class" and value not in HANDLERS:
                yield key, f"be one of {', '.join(HANDLERS)}", value
            elif last == "stream" and value not in STREAMS:
                yield key, f"be one of {', '.join(STREAMS)}", value
            elif last == "filename" and not LOG.fullmatch(text.replace(NAME, name)):
                yield key, "be ${hydra.runtime.output_dir}/NAME.log", value
            elif last == "mode" and value != "a":
                yield key, "be a, which overwrites nothing", value
            elif last not in ("stream", "filename") and re.search(r"ext:|cfg:|\$\{", text):
                yield key, "be written out", value
