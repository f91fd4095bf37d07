"""Whether transfer helped: models x seeds on one log, compared with intervals.

cells.py      a cell (model, seed, its scores), and what the log says of the same rows
bins.py       users by their relative feedback in the training log
views.py      the rows that are measured together: a task, all of it or one bin
bootstrap.py  users drawn with replacement, and the metrics of every draw
gains.py      differences of two models with interval and verdict
comparison.py what is asked for and what is found, as values
compare.py    all of it over a set of cells: `compare`
tables.py     result.json and cells.parquet
runs.py       what run folders add: seed, label, parameters, speed, curves
predictions.py  scores of a run, made once and kept (the only part that starts workers)
svg.py curves.py plots.py page.py report.py   the report
"""

from raymtl.analysis.cells import Cell
from raymtl.analysis.compare import compare
from raymtl.analysis.comparison import Comparison, Options

__all__ = ["Cell", "Comparison", "Options", "compare"]
