"""One self-contained HTML page: its CSS, and tables, figures and numbers as text."""

import html
from collections.abc import Sequence

MINUS = "\u2212"
LIGHT = {
    "ink": "#1c2024",
    "muted": "#5b636b",
    "paper": "#ffffff",
    "card": "#f5f6f8",
    "rule": "#d5d9de",
    "grid": "#e3e6ea",
    "faint": "#00000014",
    "good": "#00663f",
    "bad": "#a8320b",
}
DARK = {
    "ink": "#e6e8eb",
    "muted": "#a2aab3",
    "paper": "#14171a",
    "card": "#1c2126",
    "rule": "#3a4149",
    "grid": "#2c3238",
    "faint": "#ffffff1c",
    "good": "#5fd6a4",
    "bad": "#ff9a6b",
}
MODELS_LIGHT = ("#5b636b", "#0072b2", "#d55e00", "#008060", "#aa4499", "#b07800")
MODELS_LIGHT += ("#2c8fb5", "#882255", "#6b6b00", "#4b3fae", "#a33b3b", "#0b6b6b")
MODELS_DARK = ("#a9b1ba", "#56b4e9", "#ff8c42", "#34d1a2", "#e48bd0", "#f0c24b")
MODELS_DARK += ("#9fdcf5", "#e0779b", "#c9cc5a", "#a99bff", "#ff9f9f", "#62d6d6")
"""After Okabe and Ito, darkened for white, lightened for black; the first is the baseline's."""
SOURCES_LIGHT = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
SOURCES_LIGHT += ("#f0e442", "#6a51a3", "#8c8c8c", "#882255")
SOURCES_DARK = SOURCES_LIGHT

STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:78rem;color:var(--ink);background:var(--paper);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p{max-width:46rem;margin:.4rem 0}.muted,figcaption,caption{color:var(--muted)}
code{font-size:.92em;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;font-size:.85rem;padding:.2rem 0}
caption span{display:inline-block;position:sticky;left:0;max-width:calc(100vw - 2.5rem)}
th,td{padding:.28rem .7rem .28rem 0;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--rule);vertical-align:baseline}
th{font-weight:600}thead th{color:var(--muted);font-weight:500}
th[scope=row],thead th:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
.better{color:var(--good);font-weight:600}.worse{color:var(--bad);font-weight:600}
.small{color:var(--muted);font-size:.85em}
.below{display:block}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}
.panels.two{grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));max-width:54rem}
figure{margin:0;padding:.6rem;background:var(--card);border-radius:.5rem;min-width:0}
figure svg{display:block;width:100%;height:auto;overflow:visible}
figure svg text{font-family:inherit!important}
figcaption{font-size:.85rem;margin:.2rem 0 0}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;padding:0;margin:.5rem 0}
details{margin:.6rem 0}summary{cursor:pointer}
"""


class Raw(str):
    """Text that is HTML already."""


def page(title: str, body: Sequence[str]) -> str:
    """The whole document."""
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{html.escape(title)}</title><style>",
            _variables(":root", LIGHT, MODELS_LIGHT, SOURCES_LIGHT),
            "@media (prefers-color-scheme:dark){",
            _variables(":root", DARK, MODELS_DARK, SOURCES_DARK) + "}",
            STYLE.strip() + "</style></head><body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


def _variables(
    where: str, named: dict[str, str], models: Sequence[str], sources: Sequence[str]
) -> str:
    values = dict(named)
    values |= {f"m{i}": color for i, color in enumerate(models)}
    values |= {f"s{i}": color for i, color in enumerate(sources)}
    return where + "{" + ";".join(f"--{k}:{v}" for k, v in values.items()) + "}"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column names its rows; scrolls by itself where it is too wide."""
    headings = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{_text(first)}</th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    ]
    return (
        f'<div class="scroll" tabindex="0"><table><caption><span>{_text(caption)}</span></caption>'
        f"<thead><tr>{headings}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def panels(figures: Sequence[tuple[str, str]], kind: str = "") -> str:
    """Inline SVGs with their captions, three abreast where there is room; `two`: two."""
    made = [f"<figure>{svg}<figcaption>{_text(c)}</figcaption></figure>" for svg, c in figures]
    return f'<div class="{f"panels {kind}".strip()}">{"".join(made)}</div>'


def legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Name, sign and CSS colour of each entry."""
    items = [
        f'<li><span aria-hidden="true" style="color:{color}">{sign}</span> {_text(name)}</li>'
        for name, sign, color in entries
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def heading(level: int, text: str) -> str:
    """`h2` and so on."""
    return f"<h{level}>{_text(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, of a CSS class if one is named."""
    return f'<p class="{kind}">{_text(text)}</p>' if kind else f"<p>{_text(text)}</p>"


def details(summary: str, content: str) -> str:
    """Content that is folded away at first."""
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _text(value: str) -> str:
    return value if isinstance(value, Raw) else html.escape(value)


def fixed(value: float | int | None, digits: int = 4) -> str:
    """A number with a fixed count of decimals; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """The same with its sign; 0 has none."""
    if value is None or round(value, digits) == 0:
        return fixed(None if value is None else 0.0, digits)
    return f"{value:+.{digits}f}".replace("-", MINUS)


def count(value: float | int | None) -> str:
    """A whole number with separators."""
    return "–" if value is None else f"{value:,.0f}"


def short(value: float | int | None) -> str:
    """Three digits and a unit: 913 k, 4.56 M."""
    if value is None:
        return "–"
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.3g} T"
