"""The estimator switcher: how output lengths are guessed from now on."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget
from textual.widgets import OptionList

from driftui.clean import clean
from driftui.commands import bindings
from driftui.screens.dialog import Choices, Dialog, entry, plain
from scheduler.core.estimators import LIVE_ESTIMATORS

_NAMES = list(LIVE_ESTIMATORS)


class EstimatorScreen(Dialog):
    """Enter switches to the one under the cursor; what waits is estimated and ranked anew."""

    BINDINGS = bindings("estimator")
    WHERE = "estimator"
    HEADING = "Switch estimator"

    def content(self) -> list[Widget]:
        today = clean(self.drift.feed.view().estimator, 32)
        kind = today.partition(" ")[0]  # without its options
        self.options = Choices(entry(name, what) for name, what in LIVE_ESTIMATORS.items())
        self.options.highlighted = _NAMES.index(kind) if kind in _NAMES else 0
        self.about = plain("", id="about", classes="note")
        known = plain(f"Now: {today}. One used before goes on with what it had learned.")
        return [self.options, self.about, known]

    def on_mount(self) -> None:
        self.set_focus(self.options)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """A narrow list cuts what an estimator is; below it, it stands whole."""
        self.about.update(Content(LIVE_ESTIMATORS[_NAMES[event.option_index]]))

    def action_apply(self) -> None:
        index = self.options.highlighted
        if index is not None:
            self.send(self.drift.feed.switch_estimator, _NAMES[index])
