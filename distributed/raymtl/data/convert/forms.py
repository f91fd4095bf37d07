"""The data sets `raymtl convert` knows, and the conversion of one: whole or not at all. No Ray."""

import difflib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from raymtl.data.convert import aliccp, census, kuairand
from raymtl.data.convert.plan import Options, Plan, Tally, Write
from raymtl.data.output import Output, write_text
from raymtl.errors import InputError
from raymtl.storage import absolute, filesystem

MARKS = ("result.json", "converted.json")
"""Files that show a folder was written by a conversion, and so may be overwritten."""


@dataclass(frozen=True)
class Converter:
    """A data set's raw form."""

    plan: Callable[[str], Plan]
    """Finds and checks the files in a folder."""
    write: Write
    configs: tuple[str, ...]
    """Shipped configs that read the result."""


FORMS = {
    "kuairand": Converter(kuairand.plan, kuairand.write, ("kuairand_raw_prepare",)),
    "aliccp": Converter(aliccp.plan, aliccp.write, ("aliccp_prepare",)),
    "census": Converter(census.plan, census.write, ("census_raw_prepare",)),
}


def converter(form: str) -> Converter:
    """The data set of a name.

    Raises:
        InputError: there is none; suggests the nearest.
    """
    if form not in FORMS:
        near = difflib.get_close_matches(form, FORMS, 1)
        raise InputError(
            f"there is no converter {form}",
            form,
            f"one of {', '.join(FORMS)}",
            f"did you mean {near[0]}?" if near else "choose one; others need parquet of your own",
        )
    return FORMS[form]


def convert(
    form: str, raw: str, url_out: str, options: Options, overwrite: bool = False
) -> dict[str, Any]:
    """Converts a data set's raw files to parquet.

    Locally the folder appears whole or not at all; elsewhere result.json is written last, and what
    was written is removed on failure.

    Args:
        raw: folder or URL of the raw files.
        url_out: folder or URL to make; refused if it exists, unless `overwrite` is set and an
            earlier conversion wrote it.

    Returns:
        What result.json holds.

    Raises:
        InputError: a file is missing or not of the form, naming file, line and column.
    """
    start = time.monotonic()
    chosen = converter(form)
    _refuse_raw_within(raw, url_out)
    plan = chosen.plan(absolute(raw))
    with Output(url_out, overwrite, MARKS, by="raymtl convert", force="--overwrite") as out:
        tallies = {p.output: chosen.write(p, out.staging, options) for p in plan.pieces}
        write_text(out.staging, "converted.json", _described(form, plan, out.staging))
        result = {
            "form": form,
            "url": out.url,
            "files": {name: tally.rows for name, tally in tallies.items()},
            "left_out": _left_out(tallies),
            "notes": list(plan.notes),
            "time_s": round(time.monotonic() - start, 1),
        }
        out.finish(json.dumps(result, indent=1))
    return result


def _refuse_raw_within(raw: str, url_out: str) -> None:
    """An output that is replaced must not hold the raw files."""
    if f"{absolute(raw)}/".startswith(f"{absolute(url_out)}/"):
        raise InputError(
            "the output folder holds the raw files",
            f"{raw} lies in {url_out}",
            "an output folder beside the raw files",
            "name another output folder",
        )


def _left_out(tallies: dict[str, Tally]) -> dict[str, dict[str, int]]:
    return {name: tally.left_out for name, tally in tallies.items() if tally.left_out}


def _described(form: str, plan: Plan, staging: str) -> str:
    """Which raw files each parquet file is made of, and its columns, as JSON."""
    fs, root = filesystem(staging)
    files = {}
    for piece in plan.pieces:
        schema = pq.read_schema(f"{root}/{piece.output}", filesystem=fs)
        files[piece.output] = {
            "from": [{"url": f.url, "size_bytes": f.size_bytes} for f in piece.inputs],
            "columns": {field.name: str(field.type) for field in schema},
        }
    return json.dumps({"form": form, "files": files}, indent=1)
