"""Trees as YAML, as OmegaConf writes them, by libyaml: ten times as fast where thousands of jobs are composed."""

import contextlib
from typing import Any

import yaml

BOOLEANS = {"y", "n", "yes", "no", "on", "off", "true", "false"}  # of YAML 1.1


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # yaml has no types
    """Puts quotes around a text that OmegaConf would read as a number or a truth value, such as 1e-6 or n."""


def _text(dumper: Any, text: str) -> Any:
    quoted = text.lower() in BOOLEANS
    with contextlib.suppress(ValueError):
        quoted = quoted or isinstance(float(text), float)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if quoted else None)


_Dumper.add_multi_representer(str, _text)
_Dumper.add_representer(str, _text)


def to_yaml(tree: Any) -> str:
    """What `OmegaConf.to_yaml` makes of plain dicts, lists and values."""
    return str(yaml.dump(tree, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False))
