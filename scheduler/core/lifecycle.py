"""The life of a request: which state may follow which, and what a wrong call raises.

SchedulerError             a call that the state of things does not allow; nothing was changed
+- IllegalTransition       this request cannot go there from where it is
+- UnknownRequest          no queued or running request has this id
+- DuplicateRequest        a queued or running request has this id already
+- UnknownTenant           no tenant of that name
+- DuplicateTenant         a tenant of that name is already here
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.core.types import ENDED, Request, State

TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.NEW: frozenset({State.QUEUED, State.REJECTED}),
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.FAILED}),
    # back to QUEUED is the retry after an engine was lost
    State.RUNNING: frozenset({State.FINISHED, State.FAILED, State.ABORTING, State.QUEUED}),
    State.ABORTING: frozenset({State.CANCELLED}),
    **{state: frozenset() for state in ENDED},
}


class SchedulerError(Exception):
    """A call that the state of things does not allow."""


class IllegalTransition(SchedulerError):
    """This request cannot go there from where it is."""


class UnknownRequest(SchedulerError):
    """No queued or running request has this id."""


class DuplicateRequest(SchedulerError):
    """A queued or running request has this id already."""


class UnknownTenant(SchedulerError):
    """No tenant of that name."""


class DuplicateTenant(SchedulerError):
    """A tenant of that name is already here."""


def move(request: Request, to: State) -> None:
    """Change its state. Raises IllegalTransition and changes nothing. (Where a request cannot be in another
    state than the right one, the Scheduler sets the next without asking: that is felt there.)
    """
    if to not in TRANSITIONS[request.state]:
        raise IllegalTransition(f"request {request.id} is {request.state.value}; it cannot become {to.value}")
    request.state = to
