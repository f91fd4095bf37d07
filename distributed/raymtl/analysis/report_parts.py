"""What the parts of the report share: models in their colours, and numbers in words."""

from raymtl.analysis import page as html
from raymtl.analysis.comparison import Comparison
from raymtl.analysis.gains import Difference
from raymtl.analysis.page import Raw, count, fixed, signed
from raymtl.analysis.plots import Named
from raymtl.analysis.svg import NUM_MODEL_COLORS, marker

SIGNS = {"better": "▲", "worse": "▼", "within noise": "≈", "undecided": "?", "unknown": "–"}
MARKER_TEXT = dict(zip("os^DvPX<>ph*", "●■▲◆▼✚✖◀▶⬟⬢★", strict=True))
METRIC_NAMES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log loss",
    "gauc_users": "participating users",
}


def numbered(found: Comparison) -> dict[str, Named]:
    """Each model's number for colours: 0 is the baseline's."""
    others = [label for label in found.labels if label != found.baseline]
    return {label: Named(label, i) for i, label in enumerate([found.baseline, *others])}


def legend(found: Comparison) -> str:
    entries = []
    for named in numbered(found).values():
        color = f"var(--m{named.number % NUM_MODEL_COLORS})"
        entries.append((named.label, MARKER_TEXT[marker(named.number)], color))
    return html.legend(entries)


def gain_name(found: Comparison) -> str:
    return "MTL gain" if found.baseline_is_single_task else f"difference to {found.baseline}"


def metric_name(name: str) -> str:
    return "participating users" if name == "gauc_users" else METRIC_NAMES.get(name, name)


def with_spread(value: dict, digits: int) -> str:
    if not digits:
        return count(value["mean"])
    spread = value["spread"]
    if spread is None:
        return fixed(value["mean"], digits)
    return Raw(
        f'{fixed(value["mean"], digits)} <span class="small">±{fixed(spread, digits)}</span>'
    )


def gain_cell(found: Comparison, label: str, view: int, metric: str) -> str:
    if label == found.baseline:
        return "baseline"
    v = found.views[view]
    pair = (v.pair.a, v.pair.b) if v.pair else None
    for d in found.gains:
        key = (d.model, d.task, d.pair, d.bin, d.metric)
        if key == (label, v.task, pair, v.bin, metric):
            return said(d)
    return "–"


def said(d: Difference) -> str:
    """`▲ +0.0031 [0.0012, 0.0050]`, the sign explained for those who hear it.

    Below it the interval over seeds where that one holds 0 and the first does not.
    """
    stands = d.verdict in ("better", "worse") and not d.depends_on_seeds
    kind = d.verdict if stands else "plain"
    between = [f"[{signed(d.low)}, {signed(d.high)}]"]
    if d.depends_on_seeds:
        between.append(f"seeds [{signed(d.seeds_low)}, {signed(d.seeds_high)}]")
    return Raw(
        f'<span class="{kind}"><span role="img" aria-label="{d.words}" title="{d.words}">'
        f"{SIGNS[d.verdict]}</span> {signed(d.value)}</span> "
        + " ".join(f'<span class="small below">{text}</span>' for text in between)
    )
