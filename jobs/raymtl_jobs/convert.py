"""`raymtl convert`: a public data set from its official raw form to parquet for `prepare`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from raymtl_jobs.output import say, say_result

if TYPE_CHECKING:
    from raymtl.data.convert.plan import Plan
    from raymtl.data.convert.text import Watch

PLAIN_EVERY_S = 10.0
"""Seconds between two plain progress lines where there is no terminal to draw a bar on."""


def convert(
    form: Annotated[str, typer.Argument(metavar="FORM", help="kuairand, aliccp or census.")],
    raw: Annotated[str, typer.Argument(metavar="IN", help="Folder of the unpacked raw files.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder or URL to make.")],
    max_values: Annotated[
        int, typer.Option(min=0, help="Ali-CCP: values kept of a list, the largest; 0 keeps all.")
    ] = 20,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what an earlier conversion wrote there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the files' heads, print the plan, write none.")
    ] = False,
) -> None:
    """Convert a public data set's raw files to parquet that `raymtl prepare` reads."""
    from raymtl.data.convert.forms import convert as convert_files
    from raymtl.data.convert.forms import converter
    from raymtl.data.convert.plan import Options
    from raymtl.storage import absolute

    chosen = converter(form)
    if dry_run:
        show_plan(chosen.plan(absolute(raw)), out)
        return
    with progress() as watch:
        result = convert_files(form, raw, out, Options(max_values, watch), overwrite)
    for note in result["notes"]:
        say(f"note: {note}")
    for name, rows in result["files"].items():
        say(f"{name}: {rows:,} rows")
        for reason, times in result["left_out"].get(name, {}).items():
            say(f"  left out: {times:,} {reason}")
    for config in chosen.configs:
        say(f"next: raymtl prepare {config} LOG data_root={result['url']}")
    say_result(f"{result['url']}/result.json")


def show_plan(plan: "Plan", out: str) -> None:
    """What would be read and written, on stdout."""
    for note in plan.notes:
        say(f"note: {note}")
    for piece in plan.pieces:
        print(f"{out}/{piece.output}")
        for file in piece.inputs:
            print(f"  from {file.url} ({file.size_bytes:,} bytes)", flush=True)
    say(f"would write {len(plan.pieces)} files to {out}")


@contextmanager
def progress() -> Iterator["Watch"]:
    """A bar for the file that is being read, or plain lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    tasks, said = {}, time.monotonic()

    def watch(name: str, rows: int, share: float | None) -> None:
        nonlocal said
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=1.0 if share is not None else None, rows=0)
        bar.update(tasks[name], completed=share or 0.0, rows=rows)
        if not console.is_terminal and time.monotonic() - said >= PLAIN_EVERY_S:
            said = time.monotonic()
            say(f"{name}: {rows:,} rows" + ("" if share is None else f", {share:.0%}"))

    with bar:
        yield watch
