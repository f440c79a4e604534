"""A live run in this process as the ``Feed`` that a dashboard looks at and steers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from scheduler.core.estimate import Estimator
from scheduler.core.estimators import LIVE_ESTIMATORS
from scheduler.core.events import Event, Kind
from scheduler.core.lifecycle import UnknownTenant
from scheduler.core.policies import POLICIES, policy_from
from scheduler.core.snapshot import take_snapshot
from scheduler.core.types import Limits
from scheduler.live.run import UNDO, LiveRun
from scheduler.live.view import CommandError, Notice, NotNow, Preview, View
from scheduler.load.scenario import ScenarioError, first_fault, load_scenario, shipped_scenarios
from scheduler.load.schema import EstimatorOptions, TenantChange
from scheduler.load.workload import Workload


class LocalFeed:
    """See ``view.Feed``; every verb goes to the session and shows in a later view."""

    def __init__(self, run: LiveRun, files: Path | None = None) -> None:
        """Scenario files of the folder ``files`` may be injected as those that ship."""
        self._run = run
        self._files = files
        self._injected = 0
        self._playing = run.plan.scenario.name
        self._since_s = 0.0
        self._load: Workload = run.load
        self._loads = dict.fromkeys((tenant.name for tenant in run.plan.tenants), run.load)  # a burst's

    def view(self) -> View:
        run = self._run
        now = run.clock.now()
        recorder = run.recorder
        return View(
            snapshot=take_snapshot(run.scheduler, now),
            engine=run.engine.telemetry(),
            engine_kind=run.plan.engine,
            engine_detail=run.engine.detail,
            engine_state=run.session.engine_state,
            simulated=run.engine.simulated,
            speed=run.clock.speed,
            scenario=self._playing,
            scenario_elapsed_s=now - self._since_s,
            scenario_total_s=self._load.total_s,
            scenario_done=run.session.drained.is_set(),
            recording=str(recorder.folder) if recorder and not recorder.error else "",
            recorded_bytes=recorder.written_bytes if recorder else 0,
            loop_lag_p99_ms=run.lag.recent_p99_ms(),
            health=run.health,
            guarded=run.plan.guard is not None,
            autopilot=run.plan.goal is not None,
            estimator=run.scheduler.estimator.name,
        )

    def notices(self, after: int = 0) -> Sequence[Notice]:
        return self._run.notices.after(after)

    def policies(self) -> Mapping[str, str]:
        return POLICIES

    def scenarios(self) -> Mapping[str, str]:
        """The files first. They are only listed here: it is injecting one that reads it."""
        found = [] if self._files is None else sorted(self._files.glob("*.yaml"))
        return {str(path): f"the file {path}" for path in found} | shipped_scenarios()

    def switch_policy(self, spec: str, by: str = "operator") -> None:
        try:
            policy = policy_from(spec)
        except ValueError as error:
            raise CommandError(str(error)) from error
        self._run.session.switch_policy(policy, by=by)

    def preview(self, specs: Sequence[str] = ()) -> None:
        self._run.previewer.ask(specs)

    def previewed(self) -> Preview | None:
        return self._run.previewer.latest

    def undo_policy(self, by: str = "operator") -> None:
        if not self._run.left:
            raise NotNow("no policy switch to undo")
        self._run.session.switch_policy(policy_from(self._run.left.pop()), by=f"{by}{UNDO}")

    def switch_estimator(self, kind: str, by: str = "operator") -> None:
        if kind not in LIVE_ESTIMATORS:
            raise CommandError(f"estimator must be one of {', '.join(LIVE_ESTIMATORS)}")
        self._run.session.switch_estimator(self._estimator(EstimatorOptions(kind=kind)), by=by)

    def _estimator(self, wanted: EstimatorOptions) -> Estimator:
        """Raises CommandError."""
        try:
            if wanted.kind == "oracle":
                raise ValueError("estimator oracle: it knows true lengths, which a live run does not")
            return self._run.plan.estimator(wanted)
        except ValueError as error:
            raise CommandError(str(error)) from error

    def inject(self, scenario: str, by: str = "operator") -> None:
        try:
            found = load_scenario(scenario)
        except ScenarioError as error:
            raise CommandError(str(error)) from error
        run = self._run
        self._ready()
        self._injected += 1
        now = run.clock.now()
        load = Workload(
            found,
            seed=run.plan.seed + self._injected,
            start_s=now,
            prefix=f"i{self._injected}-",
            count_tokens=run.plan.served_counter,
            estimator=self._estimator,
        )
        self._playing, self._since_s, self._load = found.name, now, load
        self._loads |= dict.fromkeys((tenant.name for tenant in found.tenants), load)
        run.on_event(Event(now, Kind.SCENARIO, None, {"what": f"{found.name} injected", "by": by}))
        run.session.add_load(load, [tenant.to_core() for tenant in found.tenants])

    def burst(self, tenant: str, rate: float, seconds: float, by: str = "operator") -> None:
        if not (0 < rate <= 10_000 and 0 < seconds <= 86_400):
            raise CommandError("a burst has a rate of up to 10000 requests/s and lasts up to 86400 s")
        run = self._run
        self._ready()
        now = run.clock.now()
        load = self._loads.get(tenant)
        if load is None:
            served = tenant in run.scheduler.books.configs
            what = "no scenario says what this tenant asks" if served else "unknown tenant"
            raise CommandError(f"{what}; allowed: {', '.join(self._loads) or 'none'}")
        load.burst(tenant, rate, seconds, now)
        what = f"burst: {tenant} +{rate:g}/s for {seconds:g} s"
        run.on_event(Event(now, Kind.SCENARIO, None, {"what": what, "by": by}))
        run.session.add_load(load)

    def stop_loads(self, by: str = "operator") -> None:
        self._run.session.stop_loads()
        told = {"what": "loads stopped", "by": by}
        self._run.on_event(Event(self._run.clock.now(), Kind.SCENARIO, None, told))

    def _ready(self) -> None:
        state = self._run.session.engine_state
        if state not in ("ready", "restarting"):
            then = "stop, and start anew" if state == "dead" else "try again when it is ready"
            raise NotNow(f"the engine is {state}; {then}")

    def pause(self, by: str = "operator") -> None:
        self._run.session.pause(by=by)

    def resume(self, by: str = "operator") -> None:
        self._run.session.resume(by=by)

    def set_tenant(
        self, name: str, *, weight: float | None = None, limits: Limits | None = None, by: str = "operator"
    ) -> None:
        try:
            current = self._run.scheduler.books.tenant(name).config
            _check_bounds(name, weight, limits)
        except UnknownTenant as error:
            raise CommandError(str(error)) from error
        self._run.session.set_tenant(current.changed(weight, limits), by=by)


def _check_bounds(tenant: str, weight: float | None, limits: Limits | None) -> None:
    """As in a scenario's timeline. Raises CommandError."""
    change = {"name": tenant, "weight": weight, **(asdict(limits) if limits is not None else {})}
    change["ttl"] = change.pop("ttl_s", None)
    try:
        TenantChange.model_validate(change)
    except ValidationError as error:
        raise CommandError(": ".join(first_fault(error, TenantChange))) from error
