"""What jobs measured, for programs: series by name, or one table where pandas is there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from danlu.domain.views import Series


def by_label(series: Iterable[Series]) -> dict[str, Series]:
    """Returns series by their names; of a job of several tasks by ``TASK/NAME``, e.g. ``worker-1/loss``."""
    return {f"{one.task}/{one.name}" if one.task else one.name: one for one in series}


def steps(series: Series) -> list[float]:
    """Returns the step of each point; its number, from 0, where it was recorded without one."""
    return [float(at) if step is None else step for at, step in enumerate(series.steps)]


def table(series: dict[str, Series]) -> Any:
    """Returns a DataFrame: a column for each label, a row for each step, ascending; NaN where a metric has no such step.

    Of several points with one step, as after a resumption, the last one counts.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = importlib.import_module("pandas")
    columns = {label: dict(zip(steps(one), one.values, strict=True)) for label, one in series.items()}
    index = pandas.Index(sorted({step for column in columns.values() for step in column}), name="step", dtype="float64")
    return pandas.DataFrame(
        {label: pandas.Series(column, dtype="float64") for label, column in columns.items()}, index=index
    )
