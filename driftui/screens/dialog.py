"""What the dialogs share: a framed box over the dimmed run, with its keys in the frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from driftui import palette
from driftui.clean import clean, pad
from driftui.commands import hints
from scheduler.live.view import CommandError

if TYPE_CHECKING:
    from driftui.app import DriftApp


FOLLOW_S = 1.0  # between two looks of an open dialog at the run


class Dialog(ModalScreen[None]):
    """A modal box. Subclasses yield its ``content``, name their place in the command registry, and where keys
    typed ahead are to find their way, call ``set_focus`` at mounting: ``focus()`` comes after the next keys.
    """

    WHERE = ""
    HEADING = ""

    @property
    def drift(self) -> DriftApp:
        return cast("DriftApp", self.app)

    def content(self) -> list[Widget]:
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        self.error = plain("", id="error")
        self.complain("")
        box = VerticalScroll(*self.content(), self.error, id="box", can_focus=False)
        box.border_title = Content(self.HEADING)
        box.border_subtitle = Content(self.hints())
        yield box

    def hints(self) -> str:
        """The keys, for the frame."""
        return hints(self.WHERE)

    def complain(self, text: str) -> None:
        """Say what is wrong, in a line that takes no room while nothing is."""
        self.error.update(Content(clean(text, 400)))
        self.error.display = bool(text)
        if text:  # which may be more than a small screen has room for
            self.call_after_refresh(self.error.scroll_visible, animate=False)

    def send(self, verb: Callable[..., None], *args: object, **kwargs: object) -> None:
        """Ask this of the run and close; what it refuses is said here."""
        try:
            verb(*args, **kwargs)
        except CommandError as error:
            self.complain(str(error))
        else:
            self.dismiss(None)

    def action_apply(self) -> None:
        """What Enter does, or a click on a line of a list."""

    async def action_dismiss(self, result: None = None) -> None:
        self.dismiss(None)


class Choices(OptionList):
    """A list in a dialog. Enter takes effect at once: a message would come after the keys typed behind it."""

    def __init__(self, entries: Iterable[Text]) -> None:
        super().__init__(*map(Option, entries), markup=False, id="list")
        self._typed = ""

    def on_key(self, event: events.Key) -> None:
        if event.is_printable:
            event.stop()
            self.take(event.character or "")
        else:
            self._typed = ""

    def take(self, character: str) -> None:
        """The cursor goes to the first entry that begins as typed; what begins none is forgotten."""
        self._typed += character
        entries = enumerate(self.options)
        found = (index for index, option in entries if str(option.prompt).startswith(self._typed))
        index = next(found, None)
        if index is None:
            self._typed = ""
        else:
            self.highlighted = index

    def action_select(self) -> None:
        dialog = cast(Dialog, self.screen)
        if dialog.is_active:  # a second click may come when the first one has closed it
            dialog.action_apply()


class Field(Input):
    """A one-line input in a dialog; Enter as in ``Choices``."""

    def take(self, character: str) -> None:
        """As if this letter were typed now."""
        self.insert_text_at_cursor(character)

    async def action_submit(self) -> None:
        cast(Dialog, self.screen).action_apply()


def plain(text: str, *, id: str | None = None, classes: str | None = None) -> Static:
    """A text that is never parsed as markup."""
    return Static(Content(text), id=id, classes=classes, markup=False)


def field(text: str, *, id: str, placeholder: str = "", kind: type[Input] = Field) -> Input:
    """A one-line input."""
    made = kind(text, placeholder=placeholder, id=id, compact=True)
    made.cursor_blink = False  # two repaints a second, for nothing
    return made


def entry(name: str, summary: str, mark: str = "") -> Text:
    """A line of a list: a name, what it is, and a mark such as "● now"; cleaned, never parsed."""
    line = Text(no_wrap=True, overflow="ellipsis", end="")
    line.append(pad(name, 16) + " ")
    line.append(clean(summary, 58) if mark else clean(summary), style=palette.TITLE)
    if mark:
        line.append(f"   {mark}", style=palette.GOOD)
    return line
