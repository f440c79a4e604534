"""The policy switcher: every policy, and what it is predicted to do to the requests of now.

What is typed goes into a field, and the arrows move along the list, as in the command palette.
"""

from __future__ import annotations

from math import isnan, nan

from rich.text import Text
from textual.binding import Binding
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input
from textual.widgets.option_list import Option

from driftui import figures, palette
from driftui.clean import clean, pad
from driftui.commands import bindings
from driftui.screens.dialog import FOLLOW_S, Choices, Dialog, Field, entry, field, plain
from scheduler.core.policies import policy_from
from scheduler.core.types import Snapshot
from scheduler.live.view import CommandError, Predicted, Preview

LOOK_S = 0.25  # between two looks at the preview
OLD_S = 5.0  # from this age on a preview says how old it is
AGAIN_S = 15.0  # after so long it is asked anew
NAME = 18  # cells
WIDTHS = {"p50": 9, "change": 8, "p10-p90": 12, "p99": 9, "prem p99": 9, "max wait": 9}  # as they stand
DEAREST = ("p50", "change", "prem p99", "p99", "max wait", "p10-p90")  # first; the others give way to them
FIGURES = {
    "p50": "e2e.p50",
    "p99": "e2e.p99",
    "prem p99": "tiers.premium.e2e.p99",
    "max wait": "longest_wait_s",
}
NOTICED = 0.015  # change that is shown in colour; smaller ones are none
MARK = " ● now"
AROUND = 5  # cells of the box beside a line of the list: frame, padding, scroll bar
PREDICTING = "predicting what each policy would do to the requests of now ..."
LINES_AROUND = 11  # of the dialog, beside the list: frame, heading, input, what it does, error, effect


class Typed(Field):
    """Arrows move along the list, also where the dialog is longer than the screen and could be scrolled."""

    BINDINGS = [  # noqa: RUF012 (Textual's own declaration)
        Binding("up", "screen.row(-1)", show=False),
        Binding("down", "screen.row(1)", show=False),
    ]


class PolicyScreen(Dialog):
    """Every policy with its prediction; Enter switches the run to the one under the cursor, or as typed."""

    BINDINGS = bindings("policy")
    WHERE = "policy"
    HEADING = "Switch policy"

    def content(self) -> list[Widget]:
        feed = self.drift.feed
        snapshot = feed.view().snapshot
        self._list(snapshot.policy)
        self._shown: Preview | None = None
        self._moot = False
        self._refusal = ""  # why there is no preview
        self._now_s, self._paused = snapshot.now, snapshot.paused
        self.header = plain(PREDICTING, id="header")
        self.options = Choices(self._rows())
        specs = list(self._specs.values())
        self.options.highlighted = specs.index(self._today) if self._today in specs else 0
        self.typed = field("", id="spec", placeholder="type a name, or more: two-class q=0.4", kind=Typed)
        self.about = plain("", id="about", classes="note")
        self.effect = plain(_effect(snapshot))
        return [self.header, self.options, self.typed, self.about, self.effect]

    def on_mount(self) -> None:
        self.set_focus(self.typed)
        self._ask()
        self._look()
        self.set_interval(LOOK_S, self._look)
        self.set_interval(FOLLOW_S, self._follow)

    def _list(self, today: str) -> None:
        """The policies there are, and first the one of today where it goes by no mere name."""
        self._today = today
        self._summaries = dict(self.drift.feed.policies())
        self._specs = {name: _full_name(name) for name in self._summaries}  # as typed -> as predicted
        if today and today not in self._specs.values():
            name = today.split()[0]
            self._summaries = {today: self._summaries.get(name, ""), **self._summaries}
            self._specs = {today: today, **self._specs}
        self._names = list(self._specs)

    def _ask(self) -> None:
        """A refusal goes when the question is taken."""
        refused, self._refusal, self._asked_s = self._refusal, "", self._now_s
        try:
            self.drift.feed.preview([name for name in self._names if name != self._today])
        except CommandError as error:
            self._refusal = str(error)
        if self._refusal != refused:
            self.complain(self._refusal)

    def _follow(self) -> None:
        """The run goes on: a preview gets old, and somebody else may switch the policy."""
        snapshot = self.drift.feed.view().snapshot
        self._now_s, self._paused = snapshot.now, snapshot.paused
        self.effect.update(Content(_effect(snapshot)))
        if self._shown is not None:
            self.header.update(Content(self._heading(self._shown)))
        if snapshot.policy != self._today:
            cursor = self._names[self.options.highlighted or 0]
            self._list(snapshot.policy)
            self.options.set_options(map(Option, self._rows()))
            self.options.highlighted = self._names.index(cursor) if cursor in self._names else 0
            self._ask()
        elif self._refusal or self._now_s - self._asked_s >= AGAIN_S:
            self._ask()

    def _look(self) -> None:
        """Show what there is of the preview; the last one stands until the new one is as long."""
        preview, before = self.drift.feed.previewed(), self._shown
        if preview is None or preview is before:
            return
        if (
            before is not None
            and (before.today, preview.error) == (preview.today, "")
            and len(preview.policies) < len(before.policies)
        ):
            return
        self._shown = preview
        self._moot = self._is_moot(preview)
        if preview.error or (before is not None and before.error):
            self.complain(preview.error)
        self._show(preview)

    def _show(self, preview: Preview) -> None:
        self.header.update(Content(self._heading(preview)))
        for index, name in enumerate(self._names):
            self.options.replace_option_prompt_at_index(index, self._line(name))
        self._tell()

    def on_option_list_option_highlighted(self) -> None:
        self._tell()

    def _tell(self) -> None:
        """What the policy under the cursor does, and to whom."""
        index = self.options.highlighted
        name = self._names[index or 0]
        row = self._row(name)
        lines = [clean(self._summaries[name], 160)]
        if row is not None and row.longer:
            lines.append("longer for " + clean(", ".join(row.longer), 120))
        self.about.update(Content("\n".join(lines)))

    def on_resize(self) -> None:
        """The list takes what the other lines leave."""
        self.options.styles.max_height = max(3, self.app.size.height * 92 // 100 - LINES_AROUND)
        if self._shown is not None:
            self._show(self._shown)

    # -- the table -----------------------------------------------------------------------------------

    @property
    def _columns(self) -> list[str]:
        """Those that there is room for, in the order they stand in."""
        room = min(92, self.app.size.width * 96 // 100) - AROUND - NAME - len(MARK)
        shown = []
        for title in DEAREST:
            room -= WIDTHS[title]
            if room >= 0:
                shown.append(title)
        return [title for title in WIDTHS if title in shown]

    def _is_moot(self, preview: Preview) -> bool:
        """More waits than ends within the span, under all policies alike so far: figures are but its age."""
        rows, today = preview.policies, preview.policies.get(preview.today)
        return today is not None and all(
            not row.longer
            and row.figures.get("here", 0.0) > row.figures.get("ended", 0.0)
            and not any(abs(_change(row, today, figure)) >= NOTICED for figure in FIGURES.values())
            for row in rows.values()
        )

    def _heading(self, preview: Preview) -> str:
        if not preview.policies:
            return "" if preview.error else PREDICTING
        if all(isnan(row.figures.get("e2e.p50", nan)) for row in preview.policies.values()):
            return "nothing to predict: no request waits, and none came lately"
        age_s = self._now_s - preview.at_s
        resumed = ", if resumed" if self._paused else ""  # a preview knows no pause
        span = f"the next {preview.horizon_s:.0f} s{resumed} (simulated)"
        if age_s >= OLD_S:
            span += f", as of {age_s:.0f} s ago"
        if self._moot and not set(self._specs.values()) <= preview.policies.keys():
            return PREDICTING
        if self._moot:
            return f"no difference within {span}:\nmost of what waits will still wait then, under any policy"
        titles = "".join(title.rjust(WIDTHS[title]) for title in self._columns)
        return f"E2E predicted for {span}\n{'':{NAME}}{titles}"

    def _row(self, name: str) -> Predicted | None:
        return None if self._shown is None else self._shown.policies.get(self._specs[name])

    def _rows(self) -> list[Text]:
        return [self._line(name) for name in self._names]

    def _line(self, name: str) -> Text:
        mark = MARK if self._specs[name] == self._today else ""
        row = self._row(name)
        if row is None or self._moot:
            return entry(name, self._summaries[name], mark.strip())
        preview = self._shown
        assert preview is not None
        today = preview.policies.get(preview.today)
        line = Text(pad(name, NAME), no_wrap=True, overflow="ellipsis", end="")
        for title in self._columns:
            text, style = "", palette.TITLE
            if title in FIGURES:
                text, style = _seconds(row.figures.get(FIGURES[title], nan)), ""
            elif title == "p10-p90":
                text = _band(row, "e2e.p50")
            elif today is not None and not mark:
                change = _change(row, today, "e2e.p50")
                style = palette.GOOD if change <= -NOTICED else palette.BAD if change >= NOTICED else style
                text = _percent(change)
            line.append(text.rjust(WIDTHS[title]), style=style)
        line.append(mark, style=palette.GOOD)
        return line

    # -- what the operator does ----------------------------------------------------------------------

    def on_input_changed(self) -> None:
        """The cursor goes to the policy that is typed, or the first that begins so."""
        self.complain("")
        found = self._found()
        if found is not None:
            self.options.highlighted = found

    def _found(self) -> int | None:
        typed = self.typed.value.strip()
        if not typed:
            return None
        found = [index for index, name in enumerate(self._names) if name.startswith(typed)]
        return min(found, key=lambda index: len(self._names[index]), default=None)

    def action_row(self, step: int) -> None:
        """Along the list; what was typed is given up."""
        with self.prevent(Input.Changed):
            self.typed.value = ""
        if step < 0:
            self.options.action_cursor_up()
        else:
            self.options.action_cursor_down()

    def action_apply(self) -> None:
        typed, found = self.typed.value.strip(), self._found()
        index = self.options.highlighted
        if typed and self.focused is self.typed:
            self._switch(typed if found is None else self._names[found])
        elif index is not None:
            self._switch(self._names[index])

    def _switch(self, spec: str) -> None:
        swap = self.drift.feed.view().snapshot.swap
        if swap is None and _full_name(spec) == self._today:
            self.drift.notify(f"{clean(self._today, 80)} orders already", markup=False)
            self.dismiss(None)
        else:
            self.send(self.drift.feed.switch_policy, spec)


def _effect(snapshot: Snapshot) -> str:
    flying = f"{snapshot.in_flight} in flight {'goes' if snapshot.in_flight == 1 else 'go'} on."
    if not snapshot.queued:
        return f"nothing is queued; {flying}"
    return f"re-ranks {figures.number(snapshot.queued, 'queued request')}, none is lost; {flying}"


def _full_name(spec: str) -> str:
    """With its parameters; one that only the server knows stays as it is."""
    try:
        return policy_from(spec).describe()
    except ValueError:
        return spec


def _change(row: Predicted, today: Predicted, figure: str) -> float:
    """Of one figure against today's, as a share of that; NaN where one is not known."""
    before = today.figures.get(figure, nan)
    return row.figures.get(figure, nan) / before - 1 if before else nan


def _percent(change: float) -> str:
    return "" if isnan(change) else f"{change:+.0%}" if abs(change) >= 0.005 else "0%"


def _seconds(value: float) -> str:
    return figures.NOTHING if isnan(value) else f"{value:.{_digits(value)}f} s"


def _band(row: Predicted, figure: str) -> str:
    if figure not in row.low:
        return ""
    low, high = row.low[figure], row.high[figure]
    digits = _digits(high)
    return f"{low:.{digits}f}-{high:.{digits}f}"


def _digits(value_s: float) -> int:
    """Behind the point: three figures or fewer."""
    return 2 if value_s < 0.995 else 1 if value_s < 99.95 else 0
