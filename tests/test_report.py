"""A report in words and tables."""

import csv
import io

from manyfit.sweeps import grids, report
from manyfit.sweeps.findings import ranked
from swept import FakeSweep


def test_the_table_holds_every_setting(swept: FakeSweep) -> None:
    """Sorted, readable by csv."""
    settings = ranked(grids.rows_of(swept.children))
    read = list(csv.DictReader(io.StringIO(report.table_csv(settings))))
    assert len(read) == 6
    assert [float(line["mean"]) for line in read] == sorted(setting.mean for setting in settings)
    assert (read[0]["n"], read[0]["finished"], read[0]["seeds"]) == ("4", "4", "0 1 2 3")
    assert report.table(settings, "best loss/val").count("\n") == 8
