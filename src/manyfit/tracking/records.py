"""What the records of a journal must be: whoever reads one trusts nothing that stands in it.

A journal may be damaged, by a disk or a kill, or be somebody else's: what is no record is set aside, with its reason.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from manyfit.tracking.journal import Record

LATEST = 253_402_300_799_999  # milliseconds since 1970: the end of the year 9999


def _storable(text: str) -> str:
    text.encode()  # a lone surrogate, which JSON has words for, no database takes
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


def _of_torch(versions: dict[str, str]) -> dict[str, str]:
    if "torch" not in versions:
        raise ValueError("must name the torch that exported it")
    return versions


Text = Annotated[str, AfterValidator(_storable)]
Own = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
Address = Annotated[Text, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,2000}$")]  # it may be shown
Place = Annotated[Text, StringConstraints(max_length=500)]  # of a file, which has room in other folders, too
Time = Annotated[int, Field(ge=0, le=LATEST)]
Step = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Word = Annotated[str, StringConstraints(pattern=r"^[\w.+-]{1,100}$")]  # it becomes a line of requirements.txt
Tensor = tuple[
    Annotated[str, StringConstraints(pattern=r"^(float(16|32|64)|u?int(8|16|32|64)|bool)$")],
    list[Annotated[int, Field(ge=0, lt=2**31)]],
]


class Strict(BaseModel):
    """A number is a number, and no text that looks like one."""

    model_config = ConfigDict(strict=True)


class Header(Strict):
    """A session's first."""

    op: Literal["session"]
    uri: Address | None


class Data(Strict):
    """Fields of `DatasetRecord`."""

    name: Text
    digest: Text
    source: Text
    rows: Count
    features: Count
    targets: Count


class Start(Strict):
    """A run begins, or goes on."""

    op: Literal["start"]
    run: Own
    time: Time
    experiment: Text
    name: Text
    params: dict[Text, Text]
    tags: dict[Text, Text]
    parent: Own | None
    dataset: Data | None
    run_id: Text | None


class Metrics(Strict):
    """Values: name, value, step."""

    op: Literal["metrics"]
    run: Own
    time: Time
    rows: list[tuple[Text, float, Step]]


class Tags(Strict):
    """Tags of a run."""

    op: Literal["tags"]
    run: Own
    tags: dict[Text, Text]


class File(Strict):
    """An artifact, for a folder among the run's."""

    op: Literal["file"]
    run: Own
    path: Place
    folder: Text | None


class Model(Strict):
    """An exported network."""

    op: Literal["model"]
    run: Own
    path: Place
    inputs: Tensor
    outputs: Tensor
    versions: Annotated[dict[Word, Word], AfterValidator(_of_torch)]
    rows: dict[str, Any] | None = None


class End(Strict):
    """A run ends."""

    op: Literal["end"]
    run: Own
    time: Time
    status: Literal["FINISHED", "FAILED", "KILLED"]


class Close(Strict):
    """Nothing follows."""

    op: Literal["close"]


Known = Header | Start | Metrics | Tags | File | Model | End | Close
KNOWN: TypeAdapter[Known] = TypeAdapter(Annotated[Known, Field(discriminator="op")])


def parse(line: bytes) -> tuple[Record | None, str]:
    """A line of a journal as a record, or None and why it is none."""
    try:
        return KNOWN.validate_json(line).model_dump(), ""
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return None, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:500]
