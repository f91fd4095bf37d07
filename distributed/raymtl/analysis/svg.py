"""Matplotlib figures as inline SVG whose colours the page decides: light or dark, by its CSS.

A figure is drawn in stand-in colours; `inline` turns each into `currentColor` or a CSS variable.
One panel is one figure of about a phone's width, and the page flows them.
"""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID, FAINT = "#0b0000", "#0b0001", "#0b0002"
"""Stand-ins for text and lines, for the grid, and for what should recede."""
VARIABLES = {INK: "currentColor", GRID: "var(--grid)", FAINT: "var(--faint)"}
NUM_MODEL_COLORS, NUM_SOURCE_COLORS = 12, 10
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
"""Models differ in marker too, so that none is known by its colour alone."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}
WIDTH_IN = 4.3
"""310 points: readable on a phone at its full width."""


def model_color(number: int) -> str:
    """The stand-in of the n-th model's colour."""
    return f"#0a00{number % NUM_MODEL_COLORS:02x}"


def source_color(number: int) -> str:
    """The stand-in of the n-th gate source's colour."""
    return f"#0c00{number % NUM_SOURCE_COLORS:02x}"


def marker(number: int) -> str:
    """The n-th model's marker."""
    return MARKERS[number % len(MARKERS)]


@contextmanager
def panel(height_in: float = 2.7) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one axes, to be drawn on and made `inline` within the block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        yield figure, axes


def inline(figure: Figure, name: str, title: str) -> str:
    """The figure as an `svg` element for an HTML page.

    Args:
        name: unlike that of any other figure on the page; goes into its ids.
        title: what it shows, for those who do not see it.
    """
    with matplotlib.rc_context({"svg.hashsalt": name}):
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"#0[abc]00[0-9a-f]{2}", lambda found: _variable(found[0]), svg)
    label = html.escape(title, quote=True)
    return re.sub(r'width="[^"]*" height="[^"]*"', f'role="img" aria-label="{label}"', svg, count=1)


def _variable(color: str) -> str:
    """The CSS value a stand-in colour means."""
    if color in VARIABLES:
        return VARIABLES[color]
    kind = "m" if color.startswith("#0a") else "s"
    return f"var(--{kind}{int(color[-2:], 16)})"
