"""The injector: a scenario from the list, or a quick burst of one tenant; and the end of all that."""

from __future__ import annotations

from pathlib import PurePath

from textual.containers import Horizontal
from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList

from driftui.clean import clean
from driftui.commands import bindings
from driftui.screens.dialog import Choices, Dialog, entry, field, plain
from driftui.screens.parse import FieldError, positive


class InjectScreen(Dialog):
    """Enter on a scenario adds its load from now on; Enter in the form sends a burst."""

    BINDINGS = bindings("inject")
    WHERE = "inject"
    HEADING = "Inject load"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (124, "-wide")]  # noqa: RUF012 (Textual's own declaration)

    def __init__(self, tenant: str | None) -> None:
        super().__init__()
        self._tenant = tenant  # under the cursor in the table: the burst is its

    def content(self) -> list[Widget]:
        self._scenarios = self.drift.feed.scenarios()
        self._names = list(self._scenarios)
        self.options = Choices(
            entry(PurePath(name).name, summary) for name, summary in self._scenarios.items()
        )
        if self._names:
            self.options.highlighted = 0
        self.rate = field("40", id="rate")
        self.seconds = field("10", id="seconds")
        self.about = plain("", id="about", classes="note")
        found = [self.options, self.about]
        if self._tenant is None:
            return found
        name = clean(self._tenant, 40)
        return [
            *found,
            plain(f"Or a burst of {name} (tab):", classes="note"),
            Horizontal(plain("requests/s", classes="label"), self.rate, classes="row"),
            Horizontal(plain("seconds", classes="label"), self.seconds, classes="row"),
        ]

    def on_mount(self) -> None:
        self.set_focus(self.options)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """A narrow list cuts what a scenario is; below it, it stands whole."""
        self.about.update(Content(clean(self._scenarios[self._names[event.option_index]], 200)))

    def action_apply(self) -> None:
        feed, index = self.drift.feed, self.options.highlighted
        if self.focused in (self.rate, self.seconds) and self._tenant is not None:
            try:
                rate = positive("requests/s", self.rate.value)
                seconds = positive("seconds", self.seconds.value)
            except FieldError as error:
                self.complain(str(error))
            else:
                self.send(feed.burst, self._tenant, rate, seconds)
        elif index is not None:
            self.send(feed.inject, self._names[index])

    def action_stop(self) -> None:
        self.send(self.drift.feed.stop_loads)
