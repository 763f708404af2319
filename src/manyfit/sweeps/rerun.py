"""A config -> the command that runs it again."""

import contextlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from manyfit.config import place, schema
from manyfit.config.schema import Config

SEARCHING = {"sweep", "sampler", "pruner"}  # groups that say how to search, not what to run


def command(config: Config, mention: Iterable[str] = (), folded: bool = False) -> str:
    """The shortest command that composes exactly this config, for a shell.

    Args:
        config: What is to be run again.
        mention: Keys that are named even where they are the default's.
        folded: Whether all folds of its data are meant.
    """
    named = {"data", "optimizer", "optimizer.lr", "batch_size", "seed", *mention} - {"data.fold"}
    alone = ["claim=null"] if config.choices.get("experiment") else []  # one run is none to judge a claim by
    return shlex.join([*place.called().split(), *_short(overrides(config, named), config, folded), *alone])


def _short(said: Iterable[str], config: Config, folded: bool) -> list[str]:
    """Without what goes by itself: what a guest decides, and the other keys of a group whose class is one's own."""
    said = [one for one in said if not (folded and one.startswith("data.fold="))]  # data.folds alone is all of them
    said = [one for one in said if one.lstrip("~") not in _under(config.guests.decided, said)]
    own = tuple(f"{group}." for group in ("model", "data") if any(one.startswith(f"{group}._target_=") for one in said))
    said = [one for one in said if not (one.startswith("~") and one[1:].startswith(own))]
    said = [one for one in said if not one.startswith(tuple(f"{group[:-1]}=" for group in own))]
    return [one[1:] if one.startswith("+") and one[1:].startswith(own) else one for one in said]


def _under(keys: Iterable[str], said: Iterable[str]) -> set[str]:
    """Which keys that are to go are, or are part of, one of these."""
    gone = [one[1:] for one in said if one.startswith("~")]
    return {one for one in gone if any(f"{one}.".startswith(f"{key}.") for key in keys)}


def overrides(config: Config, named: Iterable[str] = ()) -> list[str]:
    """What must be said to compose exactly this config, and the named groups and keys in any case."""
    wanted, (_, usual), named = config.flat(), composed([]), set(named)
    groups = [
        f"{group}={option}"
        for group, option in sorted(config.choices.items())
        if group not in SEARCHING and (group in named or usual.get(group) != option)
    ]
    got, _ = composed(groups)
    keys = [key for key, value in wanted.items() if key in named or key not in got or got[key] != value]
    dropped = [f"~{key}" for key in got if key not in wanted and not any(k.startswith(f"{key}.") for k in wanted)]
    added = ["+" if got and key not in got else "" for key in keys]
    return [*groups, *dropped, *(f"{sign}{key}={written(wanted[key])}" for sign, key in zip(added, keys, strict=True))]


def composed(overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys that overrides compose, and the chosen options; by the Hydra that is running, or else from conf/."""
    try:
        with contextlib.ExitStack() as closing:
            if not GlobalHydra.instance().is_initialized():
                closing.enter_context(initialize_config_dir(str(place.options()), version_base="1.3"))
            cfg = compose("config", overrides, return_hydra_config=True)
            return schema.flat_of(cfg), dict(cfg.hydra.runtime.choices)
    except HydraException:
        return {}, {}  # then every key is named


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written, value)) + "]"
    if not isinstance(value, str) or _plain(value):
        return str(value)
    escaped = re.sub(r"(\\*)'", lambda m: 2 * m[1] + r"\'", value)
    trailing = re.search(r"\\*$", escaped)
    return f"'{escaped}{trailing[0] if trailing else ''}'"


def _plain(value: str) -> bool:
    """Whether Hydra reads these characters as this very string."""
    if re.fullmatch(r"\$\{[\w.:,/-]+\}", value):
        return True
    lookalike = re.fullmatch(r"(?i)null|true|false|nan|[+-]?inf|[+-]?[\d_]*\.?[\d_]*(e[+-]?\d+)?", value)
    return bool(re.fullmatch(r"[\w./@%-]+", value)) and not lookalike
