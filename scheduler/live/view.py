"""What a dashboard may see of a run and what it may ask of it: one frozen view, one list of verbs.

A local session, a recorded run and a remote server all offer the same ``Feed``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from scheduler.core.types import Limits, Snapshot
from scheduler.engines.engine import EngineTelemetry


@dataclass(frozen=True, slots=True)
class Health:
    """The machine under the run; ``None`` where it cannot be read."""

    cpu_share: float | None = None  # of all cores, 0..1
    memory_share: float | None = None
    steal_share: float | None = None
    pressure_some: float | None = None  # PSI cpu some avg10, 0..1
    gpu_share: float | None = None
    gpu_memory_share: float | None = None
    gpu_temperature_c: float | None = None
    gpu_power_w: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """One frame of the dashboard; pulled by one timer, never pushed."""

    snapshot: Snapshot
    engine: EngineTelemetry
    engine_kind: str  # sim or vllm
    engine_detail: str  # "simulated NVIDIA L4, Qwen1.5-1.8B-Chat"
    engine_state: str  # starting, ready, restarting, dead, stopping; unreachable when attached
    simulated: bool
    speed: float  # of the run's clock against the wall, 1 on a real engine
    scenario: str  # name; "" when none
    scenario_elapsed_s: float
    scenario_total_s: float | None  # None when it has no known end
    scenario_done: bool
    recording: str  # folder; "" when not recording
    recorded_bytes: int
    loop_lag_p99_ms: float  # NaN where nothing was measured
    health: Health
    replay: str = ""  # of a recorded run: playing, held or over
    guarded: bool = False  # a guard may take a switch back
    autopilot: bool = False  # it switches by itself
    estimator: str = ""  # its kind, and options if it has any: "learned", "tenant (mean)"; "" when unknown


class Notice(NamedTuple):
    """One line of the event list. ``text`` may hold names from outside: who draws it cleans it."""

    seq: int  # counts up from 1
    at_s: float  # on the run's clock, as Snapshot.now
    wall: float  # seconds since the epoch, for the HH:MM:SS column
    kind: str  # policy, scenario, drift, slo, engine, tenant, limits, pause, record, error
    text: str
    marker: bool  # drawn as a vertical line in the charts


@dataclass(frozen=True, slots=True)
class Predicted:
    """What one policy is predicted to do; figures as in ``twin.outlook``."""

    figures: Mapping[str, float]  # the mean over the futures that are played
    low: Mapping[str, float] = field(default_factory=dict)  # p10 and p90 over several futures, once played
    high: Mapping[str, float] = field(default_factory=dict)
    longer: tuple[str, ...] = ()  # tenants whose requests take longer than under today's policy


@dataclass(frozen=True, slots=True)
class Preview:
    """The next ``horizon_s`` seconds from ``at_s`` on under each policy, played in the twin."""

    at_s: float
    horizon_s: float
    today: str  # the policy that ordered then, with its parameters
    policies: Mapping[str, Predicted]  # by full name, as ``Policy.describe``; those that are there already
    done: bool  # nothing more comes
    error: str = ""  # why there is no more than this


class CommandError(ValueError):
    """A verb was refused: the message says what is wrong and what is allowed."""


class NotNow(CommandError):
    """Nothing is wrong with the verb, but the run is not in a state for it; later it may be."""


class Feed(Protocol):
    """A run to look at and to steer. Every verb returns at once; its effect shows in a later view."""

    def view(self) -> View: ...

    def notices(self, after: int = 0) -> Sequence[Notice]:
        """Notices with seq > after, oldest first; the last 500 are kept."""

    def policies(self) -> Mapping[str, str]:
        """Name -> one line that says what it does."""

    def scenarios(self) -> Mapping[str, str]:
        """Scenario file or shipped name -> one line."""

    def switch_policy(self, spec: str, by: str = "operator") -> None:
        """``spec`` is a name, or name with parameters: "aging rate=0.05". Raises CommandError."""

    def preview(self, specs: Sequence[str] = ()) -> None:
        """Begin to predict what these policies would do, or all of ``policies()``, and today's. Raises
        CommandError.
        """

    def previewed(self) -> Preview | None:
        """The latest preview, as far as it is; None before the first."""

    def undo_policy(self, by: str = "operator") -> None:
        """Back to the policy before the last switch. Raises CommandError when there is none."""

    def switch_estimator(self, kind: str, by: str = "operator") -> None:
        """To one of ``LIVE_ESTIMATORS``. Raises CommandError."""

    def inject(self, scenario: str, by: str = "operator") -> None:
        """Add the load of a scenario file (path or shipped name) from now on. Raises CommandError."""

    def burst(self, tenant: str, rate: float, seconds: float, by: str = "operator") -> None:
        """Extra Poisson arrivals of one tenant, ``rate`` per second. Raises CommandError."""

    def stop_loads(self, by: str = "operator") -> None:
        """No further request of any scenario or burst comes; what is here goes on. Raises CommandError."""

    def pause(self, by: str = "operator") -> None: ...

    def resume(self, by: str = "operator") -> None: ...

    def set_tenant(
        self, name: str, *, weight: float | None = None, limits: Limits | None = None, by: str = "operator"
    ) -> None:
        """Change weight or limits of one tenant. Raises CommandError."""
