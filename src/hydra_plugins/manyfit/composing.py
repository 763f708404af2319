"""Composing many jobs of one command: what differs in plain values only is composed once and copied."""

import copy

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict


class Composer:
    """Gives what Hydra's load_sweep_config gives, which takes 80 ms a job, in a tenth of the time.

    Args:
        loader: Hydra's.
        config: The command's config without the jobs' overrides.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self.loader, self.config = loader, config
        self.groups = set(loader.list_groups(""))
        self.parser = OverridesParser.create(config_loader=loader)
        # a folder that is named after the overrides is Hydra's to name
        self.by_name = "override_dirname" in str(OmegaConf.to_container(config.hydra.sweep, resolve=False))
        self.loaded: dict[tuple[str, ...], DictConfig] = {}
        self.parsed: dict[str, Override] = {}

    def load(self, overrides: list[str]) -> DictConfig:
        """The config of the job with these overrides."""
        parsed = [self._parse(override) for override in overrides]
        plain = [o for o in parsed if o.type is OverrideType.CHANGE and self._is_value(o)]
        if self.by_name or not plain:
            return self.loader.load_sweep_config(self.config, overrides)
        rest = [o.input_line or "" for o in parsed if o not in plain]
        key = tuple(rest) + tuple(o.key_or_group for o in plain)
        if key not in self.loaded:  # once by Hydra itself, which refuses what it would refuse
            self.loaded[key] = self.loader.load_sweep_config(self.config, overrides)
        cfg = copy.deepcopy(self.loaded[key])
        for override in plain:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        with open_dict(cfg):
            cfg.hydra.overrides.task = filter_overrides(overrides)
        return cfg

    def _parse(self, override: str) -> Override:
        if override not in self.parsed:
            (self.parsed[override],) = self.parser.parse_overrides([override])
        return self.parsed[override]

    def _is_value(self, override: Override) -> bool:
        key = override.key_or_group
        return not override.package and key not in self.groups and not key.startswith("hydra") and "/" not in key
