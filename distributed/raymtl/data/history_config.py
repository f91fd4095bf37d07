"""Config of what earlier rows tell about a row: behaviour sequences and prior rates."""

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from raymtl.config import Section
from raymtl.errors import InputError
from raymtl.schema import Rule


class ItemList(Section):
    """One list column: the last items a user saw, or dealt with in some way, before the row."""

    name: str
    """Name of the list column that is made; features and `keep` read it like a raw one."""
    item: str
    """Raw, joined or derived column whose values the list holds; outcomes of earlier rows too."""
    where: Rule | None = None
    """Rows that enter the list; null takes all. A null value fulfils nothing."""
    length: PositiveInt | None = None
    """S, most items kept, the last ones; null means 50."""
    like: str | None = None
    """Another list whose rows this one takes: another column of the same events, aligned with it.
    Stands in the place of `where` and `length`."""

    @property
    def most(self) -> int:
        """Most items kept of a list that is not like another."""
        return self.length or 50

    @model_validator(mode="after")
    def _of_columns(self) -> "ItemList":
        if self.where is not None and self.where.min_age_days is not None:
            raise InputError(
                f"list {self.name} asks for the age of its rows",
                f"where.min_age_days = {self.where.min_age_days}",
                "a column and its limits: a list holds what came before a row, whatever its age",
                "remove min_age_days, or derive a column that tells it",
            )
        return self

    @model_validator(mode="after")
    def _one_way(self) -> "ItemList":
        if self.like is not None and (self.where is not None or self.length is not None):
            raise InputError(
                f"list {self.name} says twice which rows it takes",
                f"like = {self.like}, and where or length",
                "like, or where and length",
                "remove where and length; they are those of the other list",
            )
        return self


class Sequences(Section):
    """Lists of a user's earlier rows, oldest first."""

    user: str
    """Column of the user; rows where it is null get null lists and enter none."""
    order: dict[str, str]
    """Source -> column that orders a user's rows in it (number, date or time). All rows of an
    earlier source come before those of a later one, in the order of `sources`. Rows of one source
    with equal values do not count as before each other."""
    lists: list[ItemList] = Field(min_length=1)

    @model_validator(mode="after")
    def _likes_are_there(self) -> "Sequences":
        own = {item.name for item in self.windows}
        for item in self.lists:
            if item.like is not None and item.like not in own:
                raise InputError(
                    f"list {item.name} is like a list that is not there",
                    f"like = {item.like}",
                    f"a list without `like` of its own: {', '.join(sorted(own)) or 'none'}",
                    "mend the name",
                )
        return self

    @property
    def windows(self) -> list[ItemList]:
        """The lists that say themselves which rows they take."""
        return [item for item in self.lists if item.like is None]

    def window_of(self, item: ItemList) -> int:
        """Index in `windows` of the one that a list follows."""
        return [w.name for w in self.windows].index(item.like or item.name)

    @property
    def items(self) -> list[str]:
        """Columns the lists hold, each once."""
        return list(dict.fromkeys(item.item for item in self.lists))

    @property
    def num_items(self) -> int:
        """Most items of all lists of one row."""
        return sum(self.windows[self.window_of(item)].most for item in self.lists)

    def columns(self) -> list[str]:
        """Raw, joined and derived columns this reads, each once."""
        rules = [w.where.column for w in self.windows if w.where]
        columns = [self.user, *self.order.values(), *self.items, *rules]
        return list(dict.fromkeys(c for c in columns if c is not None))


class Rate(Section):
    """One number per row: how often a key's earlier rows were positive.

    (positives + smoothing * prior) / (observed + smoothing) over the rows of the same key in
    strictly earlier periods; prior is the rate of all rows of these periods. Null in the first
    period, where nothing was observed earlier, and where the key is null.
    """

    name: str
    key: str | list[str]
    """Column, or columns together, whose equal values share a rate."""
    label: str | None = None
    """Column of numbers; nulls are unobserved and count nowhere. Other than 0 and 1, the rate is a
    smoothed mean. Without one NAME holds log(1 + earlier rows of the key), whatever came of
    them."""
    period: str
    """Column of the rows' period (number, date or time): a day, say. A source in which it is null
    throughout is one period before all others."""
    smoothing: NonNegativeFloat = 20.0
    """Rows that the prior stands for: what a key needs to count half itself."""
    count: bool = False
    """Also makes NAME_count: log(1 + observed earlier rows of the key), null where the rate is."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The key's columns."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @property
    def keying(self) -> tuple[tuple[str, ...], str]:
        """The key's columns and the period's: rates that share them share their sums' keys."""
        return self.keys, self.period

    @property
    def columns(self) -> list[str]:
        """Columns this reads, each once."""
        return list(dict.fromkeys(c for c in (*self.keys, self.label, self.period) if c))

    @property
    def made(self) -> list[str]:
        """Columns this makes."""
        return [self.name, f"{self.name}_count"] if self.count else [self.name]

    @model_validator(mode="after")
    def _is_whole(self) -> "Rate":
        if not self.keys:
            raise InputError(
                f"rate {self.name} has no key", "[]", "at least one column", "name the user, say"
            )
        if self.label is None and self.count:
            raise InputError(
                f"rate {self.name} counts twice",
                "count: true, and no label",
                "a label, or no `count`: without a label the rate is a count itself",
                "add the label, or remove count",
            )
        return self


def made_columns(sequences: Sequences | None, rates: list[Rate]) -> list[str]:
    """Columns that lists and rates make, in order."""
    lists = [item.name for item in sequences.lists] if sequences else []
    return lists + [name for rate in rates for name in rate.made]


def read_columns(sequences: Sequences | None, rates: list[Rate]) -> list[str]:
    """Columns that lists and rates read, each once."""
    names = sequences.columns() if sequences else []
    for rate in rates:
        names += rate.columns
    return list(dict.fromkeys(names))


def check_history(
    sequences: Sequences | None, rates: list[Rate], sources: list[str], outcomes: set[str]
) -> None:
    """Refuses names that do not fit, and keys or orders that would tell a row its own outcome.

    Args:
        outcomes: labels, columns listed under outcomes, and those derived from them.
    """
    made = made_columns(sequences, rates)
    doubles = sorted({name for name in made if made.count(name) > 1})
    if doubles:
        raise InputError(
            "two lists or rates make one column", ", ".join(doubles), "each once", "rename one"
        )
    if sequences:
        if set(sequences.order) != set(sources):
            raise InputError(
                "sequences.order does not fit the sources",
                f"order of {', '.join(sequences.order) or 'none'}",
                f"a column for each of {', '.join(sources)}",
                "name for each source the column that orders a user's rows",
            )
        _refuse_outcomes("the order of sequences", sequences.order.values(), outcomes)
        _refuse_outcomes("the user of sequences", [sequences.user], outcomes)
    for rate in rates:
        _refuse_outcomes(
            f"the key or period of rate {rate.name}", [*rate.keys, rate.period], outcomes
        )


def _refuse_outcomes(what: str, columns: object, outcomes: set[str]) -> None:
    found = [c for c in columns if c in outcomes]  # type: ignore[attr-defined]
    if found:
        raise InputError(
            f"{what} reads an outcome",
            f"column {found[0]}: a label, listed under outcomes, or derived from one",
            "columns known before the impression is shown",
            "outcomes may stand under item, where and label: there they are those of earlier rows",
        )
