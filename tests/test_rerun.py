"""The command that composes a config again."""

import shlex

import pytest

from conftest import Compose
from manyfit.sweeps import rerun


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data=iris", "optimizer=sgd", "optimizer.lr=0.03", "seed=7", "batch_size=full"),
        ("model.hidden=[8,4]", "model.dropout=0.25", "schedule=cosine", "name='a b, c'"),
        ("data=csv", "data.path='my file.csv'", "data.target=y", "trainer.patience=3"),
        ("optimizer=adamw", "~optimizer.weight_decay", "+optimizer.foreach=false", 'name="it\'s"'),
        ("name='1e3'", "data.train_size=100", "optimizer.lr=1e-5", "trainer.deterministic=false"),
    ],
)
def test_the_command_composes_the_config(composed: Compose, overrides: tuple[str, ...]) -> None:
    """Parsed back as a shell and Hydra do, it is the same config."""
    config = composed(*overrides)
    words = shlex.split(rerun.command(config))
    assert words[:2] == ["manyfit", "run"]
    again = composed(*words[2:])
    assert again.flat() == config.flat()
    assert again == config


def test_the_command_of_a_table_of_ones_own_is_short(composed: Compose) -> None:
    """What only the user can give is named, and of the rest what differs."""
    config = composed("data=csv", "data.path='my file.csv'", "data.target=y", "epochs=7")
    said = {"data=csv", "optimizer=adam", "data.path='my file.csv'", "data.target=y", "epochs=7"}
    assert set(shlex.split(rerun.command(config))[2:]) == said | {"optimizer.lr=0.001", "batch_size=32", "seed=0"}
