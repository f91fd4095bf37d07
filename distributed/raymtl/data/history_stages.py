"""The two stages that make lists and rates: shares deal their rows, parts build. No Ray."""

from typing import Any

import pyarrow as pa

from raymtl.data import rates, sequences
from raymtl.data.history import lists_url, rates_url
from raymtl.data.ordinals import FIRST
from raymtl.data.prepare_config import PrepareConfig
from raymtl.data.raw import Share, read
from raymtl.data.rows import Recipe, enrich
from raymtl.errors import InputError


def deal_share(share: Share, recipe: Recipe, sides: dict[str, pa.Table]) -> dict[str, Any]:
    """Leaves a share's rows, as far as lists and rates need them, with their parts.

    Returns:
        "source": the share's; "totals": each rate's, as `rates.count` returns them.
    """
    config = recipe.config
    names = [source.name for source in config.sources]
    needed = list(dict.fromkeys(c for rate in config.rates for c in rate.columns))
    source, events, rated = "", [], []
    for raw, origin in read(share, recipe.files, recipe.types):
        table, source = enrich(raw, config, sides, origin.where), origin.source
        if config.sequences:
            number = names.index(source)
            events.append(sequences.events_of(table, origin, number, config.sequences))
        if config.rates:
            rated.append(table.select(needed))
    if config.sequences:
        dealt = pa.concat_tables(events)
        sequences.deal(dealt, lists_url(recipe.scratch), share.number, recipe.num_parts)
    totals = []
    if config.rates:
        together, url = pa.concat_tables(rated).combine_chunks(), rates_url(recipe.scratch)
        totals = rates.count(together, config.rates, url, share.number, recipe.num_parts)
    return {"source": source, "totals": totals}


def build_part(part: int, recipe: Recipe, first_rows: list[int], priors: list[Any]) -> None:
    """Builds one part's lists and rates and leaves them with the shares.

    Args:
        first_rows: row within all sources of each share's first row.
        priors: of each rate, as `merge_totals` returns them.
    """
    config = recipe.config
    if config.sequences:
        sequences.build(lists_url(recipe.scratch), part, first_rows, config.sequences)
    if config.rates:
        rates.spread(rates_url(recipe.scratch), part, config.rates, priors)


def merge_totals(answers: list[dict[str, Any]], config: PrepareConfig) -> list[Any]:
    """The priors of each rate.

    Args:
        answers: of `deal_share`, of all shares in order.

    Raises:
        InputError: a source has rows with and without a period, or one without comes late.
    """
    made = []
    for number, rate in enumerate(config.rates):
        dated = ""
        for answer in answers:
            periods = {int(row[0]) for row in answer["totals"][number]}
            if FIRST in periods and (dated or len(periods) > 1):
                raise InputError(
                    f"rate {rate.name} has rows without a period after rows with one",
                    f"{rate.period} is null in rows of source {answer['source']}",
                    "a period in every row, or in none of the first sources",
                    "mend the file, put the sources without it first, or name another column",
                )
            dated = dated or (answer["source"] if FIRST not in periods else "")
        made.append(rates.priors(answer["totals"][number] for answer in answers))
    return made
