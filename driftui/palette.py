"""The colours of the screen, and the Rich styles made of them.

Everything drawn by ``render_line`` uses these styles; ``THEME`` hands the same colours to the style sheet.
"""

from __future__ import annotations

from functools import cache

from rich.style import Style
from textual.theme import Theme

BACKGROUND = "#0b0e14"
BACKGROUND_AGAIN = "#0b0e17"
SURFACE = "#151b29"  # status line, footer
RAISED = "#1c2740"  # the row under the cursor
FRAME = "#2b3650"
FRAME_AGAIN = "#2b3653"
GRID = "#333c4f"
FAINT = "#78839b"
TEXT = "#c6ccd8"
TITLE = "#8fa5cc"
BRIGHT = "#ffffff"

CYAN = "#4cc9f0"
PINK = "#f72585"
YELLOW = "#ffe14d"
GREEN = "#7ee787"
ORANGE = "#ff9f1c"
VIOLET = "#b388ff"
TEAL = "#64dfcf"
SALMON = "#f5978e"
BLUE = "#6ea8fe"
LIME = "#c3e88d"
RED = "#ff6b6b"

GOOD = GREEN
WARN = YELLOW
BAD = RED

TENANTS = (CYAN, PINK, YELLOW, GREEN, ORANGE, VIOLET, TEAL, SALMON, BLUE, LIME)


def tenant(place: int) -> str:
    """A tenant keeps the colour of its place in the order of first appearance."""
    return TENANTS[place % len(TENANTS)]


STROKES = "━╍┅"
"""How lines are drawn, as legends show it: whole, dashed, dotted."""


def stroke(place: int) -> int:
    """The second ten have the colours of the first, so their lines are dashed; those of the third, dotted."""
    return place // len(TENANTS) % len(STROKES)


_KINDS: dict[str, tuple[str, str]] = {
    "policy": ("◆", ORANGE),
    "scenario": ("■", VIOLET),
    "drift": ("▲", RED),
    "slo": ("▲", YELLOW),
    "engine": ("●", CYAN),
    "tenant": ("●", TEAL),
    "limits": ("●", TEAL),
    "pause": ("‖", YELLOW),
    "record": ("●", GREEN),
    "error": ("✖", RED),
}
_OTHER_KIND = ("·", FAINT)


def kind(name: str) -> tuple[str, str]:
    """Symbol and colour of a kind of notice."""
    return _KINDS.get(name, _OTHER_KIND)


@cache
def ink(color: str, *, on: str = BACKGROUND, bold: bool = False) -> Style:
    """The Rich style of a colour on a background; one object each, so that its escape is cached."""
    return Style(color=color, bgcolor=on, bold=bold)


THEME = Theme(
    name="drift",
    primary=CYAN,
    secondary=VIOLET,
    accent=ORANGE,
    warning=YELLOW,
    error=RED,
    success=GREEN,
    foreground=TEXT,
    background=BACKGROUND,
    surface=SURFACE,
    panel=SURFACE,
    variables={
        "faint": FAINT,
        "raised": RAISED,
        "title": TITLE,
        "scrollbar": FRAME,
        "scrollbar-hover": TITLE,
        "scrollbar-background": SURFACE,
    },
)
