"""The policy switcher."""

from __future__ import annotations

from textual.widget import Widget
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from driftui.commands import bindings
from driftui.screens.dialog import Dialog, entry, plain


class PolicyScreen(Dialog):
    """Every policy with a line about it; Enter switches the run to the one under the cursor."""

    BINDINGS = bindings("policy")
    WHERE = "policy"
    HEADING = "Switch policy"

    def content(self) -> list[Widget]:
        feed = self.drift.feed
        snapshot = feed.view().snapshot
        running = snapshot.policy.split()[0] if snapshot.policy else ""
        self._names = list(feed.policies())
        options = [
            Option(entry(name, summary, "● now" if name == running else ""))
            for name, summary in feed.policies().items()
        ]
        self.options = OptionList(*options, markup=False, id="list")
        self.options.highlighted = self._names.index(running) if running in self._names else 0
        effect = (
            f"{snapshot.queued} queued requests will be re-ranked, none is lost; "
            f"{snapshot.in_flight} in flight run on."
        )
        return [self.options, plain(effect, classes="note")]

    def on_option_list_option_selected(self) -> None:
        self.action_apply()

    def action_apply(self) -> None:
        index = self.options.highlighted
        if index is not None and self.drift.ask(self.drift.feed.switch_policy, self._names[index]):
            self.dismiss(None)

    def action_undo(self) -> None:
        if self.drift.ask(self.drift.feed.undo_policy):
            self.dismiss(None)
