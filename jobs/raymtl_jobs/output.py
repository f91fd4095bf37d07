"""What the verbs share: lines and tables for a person, result.json, errors in four parts.

What a verb was asked for goes to stdout, everything on the way there to stderr.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from raymtl.config import Section, dump
from raymtl.errors import InputError, RankFailed, input_error_in

TRACEBACK = "RAYMTL_TRACEBACK"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
COLUMNS = ("auc", "gauc", "log_loss", "calibration", "rmse", "mae", "rows", "positives")
"""Metrics of the table, in this order, where a task has them."""
MEAN = "mean"


def say(line: str) -> None:
    """A line about what is going on."""
    print(line, file=sys.stderr, flush=True)


def show_config(config: Section) -> None:
    """The resolved config on stdout, for --dry-run."""
    print(dump(config), end="", flush=True)


def show_metrics(metrics: dict[str, float | int | None], title: str) -> None:
    """A table on stdout: a line per task, a column per metric.

    Args:
        metrics: `<task>/<metric>` and, for means over tasks, `<metric>` -> value.
    """
    from rich.console import Console
    from rich.table import Table

    by_task: dict[str, dict[str, float | int | None]] = {}
    for key, value in metrics.items():
        task, _, metric = key.rpartition("/")
        by_task.setdefault(task or MEAN, {})[metric] = value
    by_task[MEAN] = by_task.pop(MEAN, {})
    columns = [c for c in COLUMNS if any(c in values for values in by_task.values())]
    table = Table("task", title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right", no_wrap=True)
    for task, values in by_task.items():
        if values:
            table.add_row(task, *(_cell(values[c]) if c in values else "" for c in columns))
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def show_drift(drift: dict[str, Any] | None, log: str) -> None:
    """What a log's features hold beside those of training: a table on stdout, jumps on stderr.

    Args:
        drift: as `evaluate` gives it; null prints a line instead.
    """
    from rich.console import Console

    from raymtl.data.drift import warnings
    from raymtl.data.drift_table import drift_table

    if drift is None:
        say("drift is not told: the model's training log was not made by `raymtl prepare`")
        return
    table = drift_table(drift, f"{log} beside the training log")
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    for line in warnings(drift, log):
        say(line)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def write_result(url: str, name: str, result: dict[str, Any]) -> None:
    """Writes a verb's result as JSON into a folder, and prints where it is."""
    from raymtl.storage import Folder

    folder = Folder(url)
    folder.write(name, (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    say_result(f"{folder.url}/{name}")


def say_result(url: str) -> None:
    """Prints where the result is."""
    say(f"result: {url}")


def reporting(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb, its errors printed in four parts: exit code 2 for the user's, 1 for failures."""

    @wraps(verb)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except typer.Exit:
            raise
        except (KeyboardInterrupt, SystemExit):  # Ray Train turns Ctrl-C into SystemExit(0)
            say("stopped")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            raise typer.Exit(report(error)) from None

    return run


def report(error: Exception) -> int:
    """Prints an error on stderr and returns its exit code."""
    with_traceback = bool(os.environ.get(TRACEBACK))
    if with_traceback:
        say("".join(traceback.format_exception(error)).rstrip())
    wrong_input = input_error_in(error)
    if wrong_input is not None:
        say(f"error: {wrong_input}")
        return 2
    text = str(error) if isinstance(error, RankFailed) else f"{type(error).__name__}: {error}"
    say(f"error: {four_parts(text if with_traceback else without_traceback(text))}")
    return 1


def four_parts(text: str) -> str:
    """A failure's text as what, got, wanted, do; one that has its parts already stays as it is."""
    if "\n  do: " in text:
        return text
    got = text.strip().replace("\n", "\n          ") or "no message"
    return str(
        InputError(
            "the command failed",
            got,
            "the command to come to its end",
            f"mend the cause and run it again; {TRACEBACK}=1 prints where in the code it was",
        )
    )


def without_traceback(text: str) -> str:
    """A worker's message without the stack that follows it."""
    kept, skipping = [], False
    for line in text.splitlines():
        if line.startswith("Traceback (most recent call last)"):
            skipping = True
        elif skipping and line.startswith("rank "):
            skipping = False
        if not skipping and line.strip():
            kept.append(line)
    return "\n".join(kept)
