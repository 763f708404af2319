"""What Hydra builds from its own part of a config, or hands to Python's logging, judged before it does."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf

from manyfit.config.errors import ConfigError
from manyfit.config.schema import flattened
from manyfit.config.trust import require_there, require_trusted, targets

PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")  # which Hydra has imported already, or refuses
LOGGING = re.compile(r"logging(\.handlers)?\.\w*(Handler|Formatter|Filter)")
JOBS = "${hydra.runtime.output_dir}/"  # which Hydra itself says
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
READ_BY_PROGRAMS = re.compile(r"PATH|ENV|BASH_ENV|(PYTHON|LD_|DYLD_|GIT_).*")  # that start, and say what they run


def require_harmless(cfg: DictConfig) -> None:
    """Raise ConfigError if Hydra's part of a composed config names what is not to be trusted."""
    node = OmegaConf.to_container(cfg.hydra, resolve=False)
    assert isinstance(node, dict)
    for key, target in targets(node, "hydra"):
        if key in ("hydra.launcher._target_", "hydra.sweeper._target_") and str(target).startswith(PLUGINS):
            continue
        require_trusted(str(target), key, cfg.trusted)
        require_there(str(target), key)
    for name in ("job_logging", "hydra_logging"):
        for key, must, got in _wrong(node.get(name) or {}, f"hydra.{name}"):
            raise ConfigError(f"{key} must {must}, but got {got!r}. Leave it out.")
    for name in (node.get("job") or {}).get("env_set") or {}:
        if READ_BY_PROGRAMS.fullmatch(str(name)):
            raise ConfigError(
                f"hydra.job.env_set.{name} must be left out, since it says what programs run. Set it in the shell."
            )


def require_own_folders(loader: ConfigLoader) -> None:
    """Raise ConfigError if config.yaml adds a package to the folders of options: it would be imported."""
    main = loader.repository.load_config("config")  # type: ignore[attr-defined]  # of Hydra's one loader
    for place in (OmegaConf.select(main.config, "hydra.searchpath") or []) if main else []:
        if str(place).startswith("pkg:"):
            raise ConfigError(f"hydra.searchpath must be of folders, file://..., but got {place}. Leave it out.")


def _wrong(tree: Mapping[str, Any], key: str) -> Iterator[tuple[str, str, Any]]:
    """What logging would import, or write to, beyond its own handlers and a log."""
    for place, name in targets(tree, key, ("()", "class")):
        if not LOGGING.fullmatch(str(name)):
            yield place, "be a handler, formatter or filter of logging", name
    for place, value in flattened(tree, key):
        parts: Sequence[Any] = value if isinstance(value, list) else [value]
        for part in map(str, parts):
            if "ext:" in part and part not in STREAMS:
                yield place, f"be one of {', '.join(STREAMS)}", part
            if "${" in part and not part.startswith(JOBS):
                yield place, "be written out", part
        if place.endswith(".filename") and not str(value).endswith(".log"):
            yield place, "end in .log", value
