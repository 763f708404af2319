"""From the command line to Hydra: what it composes is checked before anything is written, and refused in our words."""

import contextlib
import difflib
import functools
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.manyfit.harmless import require_harmless, require_own_folders, require_vouched
from manyfit import manual
from manyfit.config import place
from manyfit.config.errors import ConfigError
from manyfit.config.schema import ASIDE, Config, DataConfig, ModelConfig, not_found, refuse_passwords

KEYS = {name for name, field in Config.model_fields.items() if not field.exclude} | {*ASIDE}
REFUSED = {  # of Hydra's options, and what to do instead
    "config_path": "--config-dir adds a folder of your own to conf/, and its files come first",
    "config_name": "an option of your own, such as conf/experiment/mine.yaml, is chosen by experiment=mine",
    "experimental_rerun": "a run's config.yaml says what it was, and resume= goes on with it",
}
LAUNCHERS = (  # in this process, where the sweep is: what others start knows of no sweep
    "hydra_plugins.manyfit.fused.FusedLauncher",
    "hydra_plugins.manyfit.fused.RayLauncher",
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
)
OURS = "hydra_plugins.manyfit."
ALIKE = 0.75  # of a key from anywhere else
COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")  # of Hydra's options, of which there may be one
SYNONYMS = {"learning_rate": "lr", "l2": "weight_decay", "layers": "hidden", "gpus": "devices"}  # not alike in letters


def start(task: TaskFunction, arguments: Sequence[str], folders: Sequence[Path]) -> None:
    """Do what `hydra.main` does, which would write first, and print errors of its own.

    Args:
        task: Is given the composed config of a single run.
        arguments: Of the command line.
        folders: Of options; the first that has a file wins, and the last has config.yaml.

    Raises:
        ConfigError: Something on the command line, or in a file that it chooses, cannot be used.
    """
    refuse_passwords(dict(argument.partition("=")[::2] for argument in arguments))  # before argparse repeats it
    parser = get_args_parser()
    parser.allow_abbrev = False
    options, others = parser.parse_known_intermixed_args(list(arguments))  # -m may stand anywhere
    if others:
        key, sign, value = others[0].lstrip("-").partition("=")
        after = arguments[list(arguments).index(others[0]) + 1 :]
        behind = after[0] if after and not after[0].startswith("-") and "=" not in after[0] else "true"
        raise ConfigError(
            f"options must be those that --hydra-help lists, but got {others[0]}. A setting has no dashes: "
            f"{key}={value if sign else behind}"
        )
    given: list[str] = options.overrides
    flags = {flag for flag, value in vars(options).items() if value} - {"overrides", "config_dir"}
    for flag in sorted(flags & REFUSED.keys()):
        raise ConfigError(f"--{flag.replace('_', '-')} must be left out: {REFUSED[flag]}.")
    with hydra_on([*_added(options.config_dir), *folders]) as app, in_our_words(app.config_loader, given):
        given = options.overrides = spelled_out(app.config_loader, given)
        if not flags & {"shell_completion", "hydra_help"}:  # whose words are no overrides
            mode = mode_of(app.config_loader, given, options.multirun)
        if flags - {"run", "multirun"}:
            _answer(app, options, parser)
        else:
            go = app.multirun if mode == RunMode.MULTIRUN else app.run
            go("config", task, [*given, f"hydra.mode={mode.name}"])


def _answer(app: Hydra, options: Namespace, parser: ArgumentParser) -> None:
    """What Hydra says when it is asked something: --help, --cfg and the like; as `hydra.main` has it."""
    asked = [name for name in COMMANDS if getattr(options, name)]
    if len(asked) > 1:
        raise ConfigError(
            f"--{' and --'.join(asked)} must be asked one at a time, but got both. Leave out one.".replace("_", "-")
        )
    if options.help or options.hydra_help:
        (app.app_help if options.help else app.hydra_help)("config", parser, options)
    elif options.cfg:
        app.show_cfg("config", options.overrides, options.cfg, options.package, options.resolve)
    elif options.info:
        app.show_info(options.info, "config", options.overrides)
    elif not options.shell_completion:
        raise ConfigError("--package and --resolve must stand beside --cfg, but got them alone. Add --cfg job.")
    elif place.called() == "manyfit run":
        raise ConfigError("--shell-completion must be left out: what Hydra completes are commands of one word.")
    else:
        try:
            app.shell_completion("config", options.overrides)
        except ValueError as error:  # of its words
            raise ConfigError(str(error)) from None


def _added(folder: str | None) -> list[Path]:
    """That of --config-dir."""
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"--config-dir must be a folder, but got {folder}.")
    return [] if folder is None else [Path(folder).absolute()]


@contextlib.contextmanager
def hydra_on(folders: Sequence[Path]) -> Iterator[Hydra]:
    """Hydra on folders of options, as `hydra.main` sets it up; and what --help asks for of ours."""
    base = version.VersionBase.instance().getbase()
    ours: dict[str, Callable[..., str]] = {"manual": functools.partial(manual.keys, folders), "called": place.called}
    new = [name for name in ours if not OmegaConf.has_resolver(name)]
    try:
        version.setbase("1.3")
        for name, resolver in ours.items():
            OmegaConf.register_new_resolver(name, resolver, replace=True)
        *first, last = folders
        path = create_config_search_path(str(last))
        for folder in first:
            path.prepend("own", f"file://{folder}", "main")
        app = Hydra.create_main_hydra2("run", path)
        require_own_folders(app.config_loader)
        from hydra_plugins.manyfit import fused  # by now Hydra has loaded all plugins

        fused.store()
        yield app
    finally:
        GlobalHydra.instance().clear()
        version.VersionBase.instance().version_base = base
        for name in new:  # what a module of the caller's has registered meanwhile stays: it is imported once
            OmegaConf.clear_resolver(name)


def spelled_out(loader: ConfigLoader, overrides: list[str]) -> list[str]:
    """What is said in short: a group of one's own; `data.folds=5`, of which each is trained."""
    return with_folds(whole_groups(loader, overrides))


def with_folds(overrides: list[str]) -> list[str]:
    """`data.folds=5` means `data.fold=range(0,5)`, where that is not said."""
    said = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    if "data.fold" in said or not said.get("data.folds", "").isdigit():
        return overrides
    return [*overrides, f"data.fold=range(0,{said['data.folds']})"]


def whole_groups(loader: ConfigLoader, overrides: list[str]) -> list[str]:
    """`model._target_=nets.Net model.width=32` is a model with these keys, whatever others the chosen option has.

    Likewise for data.
    """
    for group, component in (("model", ModelConfig), ("data", DataConfig)):
        if not any(override.startswith(f"{group}._target_=") for override in overrides):
            continue
        own = {o.partition("=")[0].lstrip("+~") for o in overrides if o.lstrip("+~").startswith(f"{group}.")}
        others = [o for o in overrides if o.partition("=")[0].lstrip("+~") not in own]
        usual = loader.load_configuration("config", others, RunMode.MULTIRUN, validate_sweep_overrides=False)[group]
        stay = {"_target_", *component.model_fields}
        gone = [f"~{group}.{key}" for key in usual if key not in stay and f"{group}.{key}" not in own]
        overrides = [*(f"++{o}" if o.startswith(f"{group}.") else o for o in overrides), *gone]
    return overrides


@contextlib.contextmanager
def in_our_words(loader: ConfigLoader, overrides: Sequence[str]) -> Iterator[None]:
    """What Hydra refuses about these overrides is a ConfigError that says what would be right."""
    if nameless := [override for override in overrides if not override.lstrip("+~").partition("=")[0].strip()]:
        raise ConfigError(f"{nameless[0]} must be key=value in Hydra's grammar, but it has no key. Name one.")
    try:
        yield
    except OverrideParseException as error:
        raise ConfigError(
            f"{error.override} must be key=value in Hydra's grammar, without spaces. Put a value with special "
            "characters in quotes within quotes, such as \"data.separator=';'\"."
        ) from None
    except MissingConfigException as error:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = _other_option(group, option, error.options) if error.options else str(error).splitlines()[0]
        raise ConfigError(known) from None
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            raise ConfigError(_other_key(cause.full_key, loader, overrides)) from None
        raise ConfigError(" ".join(str(cause if isinstance(cause, ValueError) else error).split())) from None
    except OmegaConfBaseException as error:  # of an interpolation in Hydra's own part
        raise ConfigError(not_found(error, {})) from None


def mode_of(loader: ConfigLoader, overrides: list[str], multirun: bool) -> RunMode:
    """Whether this is one run or a sweep; checks what is composed."""
    try:
        cfg = loader.load_configuration("config", overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
    except (TypeError, ValueError) as error:  # data=null, data=[[1]]
        raise ConfigError(str(error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"a file of conf/ must be YAML, but {' '.join(str(error).split())}") from None
    tree = OmegaConf.to_container(cfg)
    assert isinstance(tree, dict)
    refuse_passwords({str(key): node for key, node in tree.items()})
    for unknown in (str(key) for key in tree if key not in KEYS):  # +lr=0.1
        raise ConfigError(_other_key(unknown, loader, overrides))
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    swept = [override for override in parsed if override.is_sweep_override()]
    require_vouched(cfg, [override for override in parsed if override not in swept])
    if dict(tree["hydra"]["launcher"] or {}).get("_target_") not in LAUNCHERS:  # as written
        raise ConfigError(
            f"hydra/launcher must be fused, ray or basic, but got {cfg.hydra.runtime.choices['hydra/launcher']}: its "
            "jobs would be runs without a sweep. Leave it out: hydra.launcher.workers=2 spreads a sweep over a "
            "machine, hydra/launcher=ray over a cluster, SLURM's too (docs/machines.md)."
        )
    require_harmless(cfg)
    if cfg.hydra.launcher._target_ == LAUNCHERS[2] and not cfg.hydra.sweeper._target_.startswith(OURS):
        raise ConfigError(
            f"hydra/launcher must be fused with hydra/sweeper={cfg.hydra.runtime.choices['hydra/sweeper']}, but got "
            "basic. Leave it out: hydra.launcher.max_members=1 trains one by one."
        )
    folded = any(override == f"data.fold=range(0,{cfg.data.get('folds')})" for override in overrides)
    mode: RunMode = RunMode.MULTIRUN if multirun or folded else cfg.hydra.mode or RunMode.RUN
    if folded and cfg.hydra.sweeper._target_.endswith("OptunaStudy"):
        raise ConfigError(
            f"data.folds must be null in a search, but got {cfg.data.folds}. Search first, then give what is best "
            "data.folds."
        )
    if swept and mode == RunMode.RUN:
        key, _, values = str(swept[0].input_line).partition("=")
        raise ConfigError(f"{key} must be one value in a single run, but got {values}. For a sweep, add -m.")
    if mode == RunMode.RUN and cfg.hydra.launcher._target_ == LAUNCHERS[1]:
        raise ConfigError("hydra/launcher must be left out of a single run, but got ray. For a sweep, add -m.")
    if cfg.quick and (mode == RunMode.RUN or cfg.hydra.sweeper._target_.endswith("OptunaStudy")):
        raise ConfigError("quick must be false but in an experiment or a grid, which it makes small, but got true.")
    _check_swept(swept, cfg, loader, overrides)
    return mode


def _check_swept(swept: Sequence[Override], cfg: DictConfig, loader: ConfigLoader, overrides: Sequence[str]) -> None:
    """Hydra looks at them job by job, which may be a thousand times, or in the middle of a search."""
    groups = {override.key_or_group for override in swept} & set(loader.list_groups(""))
    for override in swept:
        key = override.key_or_group
        if key in groups:
            options = loader.get_group_options(key)
            for option in override.sweep_string_iterator():
                if option not in options:
                    raise ConfigError(_other_option(key, option, options))
        elif override.type is OverrideType.CHANGE and key.split(".")[0] not in groups:
            try:
                OmegaConf.update(cfg, key, None)
            except OmegaConfBaseException:
                raise ConfigError(_other_key(key, loader, overrides)) from None


def _other_option(group: str, option: str, options: Sequence[str]) -> str:
    """What there is to choose from."""
    return f"{group} must be one of {', '.join(options)}, but got {option}.{_meant(option, options)}"


def _other_key(key: str, loader: ConfigLoader, overrides: Sequence[str]) -> str:
    """Which key was meant, and what stands beside it; Hydra names the first part of it that is not there."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    key = next((o.key_or_group for o in parsed if f"{o.key_or_group}.".startswith(f"{key}.")), key)
    head, _, last = key.rpartition(".")
    options = loader.list_groups("")
    groups = {o.key_or_group: o for o in parsed if o.key_or_group in options}
    chosen = [str(o.input_line) for o in groups.values() if isinstance(o.value(), str)]
    cfg = loader.load_configuration("config", chosen, RunMode.MULTIRUN)
    keys = _keys(OmegaConf.to_container(cfg), hydras=key.startswith("hydra"))
    given = [str(o.input_line).partition("=")[2] for o in parsed if o.key_or_group == key]
    if key in keys and given:
        return f"{key} must be of the kind of its default, {OmegaConf.select(cfg, key)}, but got {given[0]}."
    beside = [one for one in keys if head and one.rpartition(".")[0] == head]
    sentences = [f"{key} must be a key of the config, but there is no such key."]
    sentences.append(_meant(last, beside) or _which_has(head, last, loader) or _meant(last, keys, ALIKE))
    if beside:
        option = cfg.hydra.runtime.choices.get(head)
        own = ", ".join(one.rpartition(".")[2] for one in beside)
        sentences.append(f" {head}{f'={option}' if option else ''} has {own}.")
    if head in groups and groups[head].is_sweep_override():
        sentences.append(f" In a sweep over {head}, ++{key} sets it for each.")
    return "".join(sentences)


def _which_has(group: str, key: str, loader: ConfigLoader) -> str:
    """The options of the group that have this key."""
    if group not in loader.list_groups(""):
        return ""
    repository = loader.repository  # type: ignore[attr-defined]  # of Hydra's one loader
    try:
        files = {option: repository.load_config(f"{group}/{option}") for option in loader.get_group_options(group)}
    except (HydraException, yaml.YAMLError):  # of an option that is not meant
        return ""
    has = [f"{group}={option}" for option, file in files.items() if file and key in list(file.config)]
    return f" {', '.join(has)} {'has' if len(has) == 1 else 'have'} it." if has else ""


def _meant(word: str, choices: Sequence[str], alike: float = 0.6) -> str:
    """The choice whose last part is most like the word, as a question."""
    lasts = {choice.rpartition(".")[2]: choice for choice in reversed(choices)}
    like = difflib.get_close_matches(SYNONYMS.get(word, word), lasts, n=1, cutoff=alike)
    return f" Did you mean {lasts[like[0]]}?" if like else ""


def _keys(tree: Any, prefix: str = "", hydras: bool = False) -> list[str]:
    """Dotted keys, those of inner nodes too."""
    found: list[str] = []
    for name, node in tree.items() if isinstance(tree, dict) else ():
        if "." not in name and name != "_target_" and (hydras or f"{prefix}{name}" != "hydra"):
            found += [f"{prefix}{name}", *_keys(node, f"{prefix}{name}.", hydras)]
    return found
