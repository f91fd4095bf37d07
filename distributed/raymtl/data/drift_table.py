"""A log's drift as a table, the features that moved most first."""

from typing import Any

from rich.table import Table

MOST_SHOWN = 12


def drift_table(drift: dict[str, dict[str, Any]], title: str) -> Table:
    """The features that moved most, their shares beside training's.

    Args:
        drift: as `drift.compared` gives it.
    """
    table = Table(title=title, title_justify="left")
    for name in ("feature", "null", "in training", "unknown", "in training", "PSI"):
        table.add_column(name, justify="left" if name == "feature" else "right")
    order = sorted(drift.items(), key=lambda item: (-len(item[1]["jumps"]), -item[1]["psi"]))
    for name, values in order[:MOST_SHOWN]:
        shares = [values[k] for k in ("null", "train_null", "unknown", "train_unknown")]
        cells = ["" if share is None else f"{share:.2%}" for share in shares]
        table.add_row(name, *cells, f"{values['psi']:.3f}")
    if len(order) > MOST_SHOWN:
        table.caption = f"and {len(order) - MOST_SHOWN} more that moved less, in the result"
    return table
