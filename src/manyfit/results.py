"""What the library hands back: trainings and sweeps that are over, which show themselves in a notebook."""

import html
import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyfit.config.schema import Config

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import ArrayLike

    from manyfit.sweeps.report import Report
    from manyfit.training.trained import Result


FIGURES = ("lr_sensitivity", "curves", "importance", "history")  # of a sweep, the most telling first


class Picture(bytes):
    """A PNG that a notebook shows. `Path("run.png").write_bytes(picture)` keeps it."""

    def _repr_png_(self) -> bytes:
        return bytes(self)


@dataclass(frozen=True, repr=False)
class Run:
    """A training that is over.

    Attributes:
        id: MLflow's, under which it is stored; None with tracking="off".
        config: What it was.
        result: Everything that is known of it.
    """

    id: str | None
    config: Config
    result: "Result"

    @property
    def curves(self) -> "pd.DataFrame":
        """Every metric of every epoch: a row an epoch, 0 being the untrained network, a column a metric.

        >>> run = fit("data=iris", epochs=3, tracking="off")
        >>> run.curves[["loss/train", "loss/val"]].shape
        (4, 2)
        """
        import pandas as pd

        frame = pd.DataFrame(dict(self.result.metrics))
        return frame.rename_axis("epoch")

    @property
    def verdict(self) -> str:
        """How the curves are to be read, in a sentence."""
        from manyfit import curves

        return curves.sentence(self.result.summary)

    @property
    def test(self) -> dict[str, float]:
        """Measured once, with the weights of the best epoch: `{"loss/test": ..., "accuracy/test": ...}`."""
        return dict(self.result.test)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the columns of `predict` stand for; of a regression none."""
        return self.result.classes

    def predict(self, x: "ArrayLike | pd.DataFrame") -> "np.ndarray":
        """What the weights of the best epoch say.

        Args:
            x: (rows, features), or in the shape of the examples, raw, in the order of `result.features`; or a frame
                with the columns that were trained on, in any order and with gaps. A word that no training row had is
                none of those that had. Of a LightningModule: what its forward takes.

        Returns:
            (rows, classes) probabilities, in the order of `classes`; of a regression (rows, 1) values; of a
            LightningModule what its forward gives.

        Raises:
            ValueError: x has other columns, or a cell that cannot be used; or the network was let go: of a sweep, only
                the best are kept.

        >>> run = fit("data=iris", epochs=3, tracking="off")
        >>> run.predict([[5.1, 3.5, 1.4, 0.2]]).shape
        (1, 3)
        """
        import numpy as np
        import pandas as pd
        import torch

        if self.result.predictor is None:
            raise ValueError("run must be one whose network was kept: of a sweep, those are the best. Train it by fit.")
        if isinstance(x, pd.DataFrame):
            from manyfit.data.files import Frame

            x = self.result.encoding.of_frame(Frame(x, "the frame", "x"))
        try:
            rows = np.asarray(x, np.float32)
        except ValueError as error:
            raise ValueError(f"x must be numbers, or a frame if there are words in it, but {error}.") from None
        if self.config.guests.model:
            with torch.no_grad():
                return self.result.predictor(torch.from_numpy(rows)).numpy()  # type: ignore[no-any-return]
        rows = rows.reshape(len(rows), -1) if rows.ndim > 2 else rows
        if rows.ndim != 2 or rows.shape[1] != len(self.result.features):
            wide = len(self.result.features)
            raise ValueError(
                f"x must have the shape (rows, {wide}), but got {rows.shape}. Its columns are the features."
            )
        with torch.no_grad():
            return self.result.predictor(torch.from_numpy(rows)).numpy()  # type: ignore[no-any-return]

    def plot(self) -> Picture:
        """Its overfitting curve, as its page in MLflow has it."""
        from manyfit.training.recording import picture

        return Picture(picture(self.result))

    def __repr__(self) -> str:
        """What it was, and how it went, in a line."""
        named = f"run {self.id[:8]}" if self.id else "run"
        return f"<{named}: {self.config.title()} on {self.config.experiment}. {self.verdict}>"

    def _repr_html_(self) -> str:
        test = ", ".join(f"{name} {value:.4g}" for name, value in self.test.items())
        about = f"{self.config.experiment}: {self.config.title()}" + (f" ({self.id[:8]})" if self.id else "")
        words = "".join(f"<p>{html.escape(line)}</p>" for line in (about, self.verdict, test))
        return words + _image(self.plot())


@dataclass(frozen=True, repr=False)
class Runs(Sequence[Run]):
    """A sweep that is over: its runs, and what was found.

    Attributes:
        id: MLflow's, of the parent run.
        runs: In the order of their jobs; without those that could not be trained.
        report: What was found; None where another session reports on the study.
        failure: How many runs failed, and why the first did.
    """

    id: str | None
    runs: tuple[Run, ...]
    report: "Report | None"
    failure: Exception | None = None

    def __getitem__(self, index: Any) -> Any:
        """A run, or some."""
        return self.runs[index]

    def __len__(self) -> int:
        """How many."""
        return len(self.runs)

    def __repr__(self) -> str:
        """How many, and the best of them, in a line."""
        best = self.report.row.config if self.report and self.report.row else None
        found = f"; best {best.title()}" if best else ""
        return f"<{len(self)} runs{f' of {self.id[:8]}' if self.id else ''}{found}>"

    def best(self) -> Run:
        """The best run of the setting that is recommended.

        Raises:
            ValueError: There is none: no run has a value, or what varies cannot be compared.
        """
        row = self.report.row if self.report else None
        if row is None or row.config is None or row.result is None:
            why = str(self.failure) if self.failure else "it is another session's, or none has a value to compare"
            raise ValueError(f"runs must have a best one, but there is none here: {why}.")
        return Run(row.run.run_id if row.run else None, row.config, row.result)

    def table(self) -> "pd.DataFrame":
        """A row for each setting, best first: its values, the objective's mean and interval over seeds."""
        import pandas as pd

        from manyfit.sweeps import report

        return pd.read_csv(io.StringIO(report.table_csv(self.report.settings if self.report else [])))

    def plot(self, name: str | None = None) -> Picture | None:
        """A figure of the sweep, as the page of its parent run has it.

        Args:
            name: lr_sensitivity, curves, importance or history; None: the first of them that shows something.

        Returns:
            None where nothing can be shown: no run has a value, or what varies cannot be compared.

        Raises:
            ValueError: There is no figure of that name.

        >>> runs = grid("data=iris", lr=[0.01, 0.1], epochs=3, tracking="off")
        >>> runs.plot()[1:4], runs.plot("curves")[1:4]
        (b'PNG', b'PNG')
        """
        from manyfit.plots.style import png
        from manyfit.sweeps import report

        if name not in (None, *FIGURES):
            raise ValueError(f"name must be one of {', '.join(FIGURES)}, but got {name!r}.")
        if self.report is None or not self.runs:
            return None
        drawings = report.drawings(self.report, self.runs[0].config.experiment)
        figures = (drawn() for key, drawn in drawings.items() if name in (None, key))
        return next((Picture(png(figure)) for figure in figures if figure is not None), None)

    def _repr_html_(self) -> str:
        from manyfit.sweeps import report

        if self.report is None:
            return "<p>Another session reports on this study: <code>runs</code> reads what is stored.</p>"
        said = f'<pre style="white-space: pre-wrap">{html.escape(report.summary(self.report))}</pre>'
        drawn = _image(picture) if (picture := self.plot()) else ""
        return said + self.table().to_html(index=False) + drawn


def _image(picture: Picture) -> str:
    return f'<img src="data:image/png;base64,{b64encode(picture).decode()}" width="720">'
