"""Passwords: what one looks like, which keys of a config hold one, and how text is shown without it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# In an address a password may itself hold / and @, so all up to the last @ of the word belongs to it.
PASSWORD = re.compile(
    r"(https?://(?=[^/\s@]+@)"  # https://token@host
    r"|\w:/{1,2}(?=[^/\s@:]*:[^\s@])"  # scheme://user:password@host, also as a path, with one /
    r"|(?:^|(?<=[\s=\"']))(?=[\w.+-]+:[^\s/@]+@\S)"  # user:password@host
    r")\S*(?=@)"
    r"|((?:password|passwd|secret|(?:api|access)_?key|(?:^|[^a-z])(?:pass|pwd|pw|token)(?!=(?:true|false|"
    r"null|none|[-+.\de]+)(?:$|[&\s]))|[?&]key)=)[^&\s]+",  # a switch or number such as cls_token=true is none
    re.IGNORECASE,
)
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+\}")


def mask(text: str) -> str:
    """The text with `scheme://user:password@host` and `password=...` as `scheme://***@host` and `password=***`."""
    return PASSWORD.sub(lambda found: f"{found[1] or found[2] or ''}***", text)


def held_by(tree: Any, key: str = "") -> Iterator[str]:
    """The dotted keys of a config, as written, that hold a password; one that `${oc.env:NAME}` stands for is none."""
    if isinstance(tree, Mapping):
        for name, node in tree.items():
            yield from held_by(node, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list | tuple):
        for node in tree:
            yield from held_by(node, key)
    elif tree is not None and PASSWORD.search(FROM_ENVIRONMENT.sub("", f"{key}={tree}")):
        yield key
