"""What earlier versions stored, and what it is called now."""

RENAMED = {  # since configs were stored
    "manyfit.sources": "manyfit.data.sources",
    "manyfit.claims.course.squared": "manyfit.losses",
    "manyfit.claims": "manyfit.experiments",
}
DROPPED = ("trainer.compile",)  # keys of earlier configs that say nothing any more


def today(path: str) -> str:
    """The dotted name of what an earlier version stored under another."""
    old = next((old for old in RENAMED if path.startswith(f"{old}.")), None)
    return RENAMED[old] + path.removeprefix(old) if old else path
