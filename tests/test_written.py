"""YAML by libyaml: the text that OmegaConf writes."""

import pytest
from omegaconf import OmegaConf

from conftest import CONF, Compose, options
from manyfit.config.written import to_yaml

GROUPS = [folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "experiment"]


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_is_written_as_omegaconf_writes_it(group: str) -> None:
    for name in options(group):
        tree = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
        assert to_yaml(tree) == OmegaConf.to_yaml(OmegaConf.create(tree))


def test_a_run_is(composed: Compose) -> None:
    config = composed("optimizer.lr=1e-6", "data=moons")
    assert config.yaml() == OmegaConf.to_yaml(OmegaConf.create(dict(config.source)))


def test_texts_that_look_like_something_else() -> None:
    texts = [
        "1e-6",
        "n",
        "Yes",
        "off",
        "nan",
        "inf",
        "3",
        "1_000",
        "",
        "-",
        "# no",
        "x: y",
        "é" * 120,
        "a\nb",
        "null",
        "~",
    ]
    tree = {"texts": texts, "n": 1, "x": [None, True, 1e20, float("inf")], "empty": {}, "later": "${oc.env:HOME}"}
    assert to_yaml(tree) == OmegaConf.to_yaml(OmegaConf.create(tree))
    assert OmegaConf.to_container(OmegaConf.create(to_yaml(tree)))["texts"] == texts
