"""One tenant: what is known of it, and the few things that can be changed while it runs."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

from textual.containers import Horizontal
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input, Static

from driftui import figures
from driftui.clean import clean
from driftui.commands import bindings, hints
from driftui.screens.dialog import FOLLOW_S, Dialog, field, plain
from driftui.screens.parse import FieldError, bound, positive, seconds_bound
from scheduler.core.types import Limits, Percentiles, TenantSnapshot

_FORM = (
    ("weight", "weight"),
    ("max_queued", "max queued"),
    ("max_in_flight", "max in flight"),
    ("ttl_s", "ttl, seconds"),
)


def _latency(name: str, latency: Percentiles, objective_s: float) -> str:
    goal = f"   objective {figures.seconds(objective_s)}" if isfinite(objective_s) else ""
    values = "  ".join(f"{p} {figures.seconds(getattr(latency, p))}" for p in ("p50", "p95", "p99", "max"))
    return f"{name}, s".ljust(10) + values + goal


def _queue(tenant: TenantSnapshot) -> str:
    if not tenant.queued:
        return "nothing waits"
    oldest = f"oldest waits {figures.seconds(tenant.oldest_wait_s)} s"
    return (
        f"{figures.number(tenant.queued, 'request')}, {figures.count(tenant.queued_tokens)} tokens, {oldest}"
    )


def facts(tenant: TenantSnapshot) -> str:
    """Everything about a tenant, in lines; latencies in seconds over the metrics window."""
    learned = "converged" if tenant.converged else "still moving"
    return "\n".join(
        [
            f"{'tier':<10}{clean(tenant.tier, 20)}",
            f"{'queue':<10}{_queue(tenant)}",
            f"{'in flight':<10}{tenant.in_flight}",
            f"{'requests':<10}{tenant.submitted} submitted, {tenant.finished} finished, "
            f"{tenant.ended_otherwise} ended otherwise",
            f"{'served':<10}{figures.percent(tenant.share)} of tokens, "
            f"{figures.count(tenant.tokens_per_s)} tokens/s",
            _latency("TTFT", tenant.ttft, tenant.slo.ttft_s),
            _latency("E2E", tenant.e2e, tenant.slo.e2e_s),
            f"{'SLO met':<10}{figures.percent(tenant.slo_share)}",
            f"{'drift':<10}{figures.ratio(tenant.drift_ratio)}  "
            f"(estimated {figures.count(tenant.estimated_tokens)}, "
            f"actual {figures.count(tenant.actual_tokens)} tokens; "
            f"{figures.percent(tenant.capped_share)} capped)",
            f"{'upper':<10}{figures.percent(tenant.coverage)} of the answers within their upper estimate",
            f"{'bias':<10}{figures.ratio(tenant.bias)}, {learned}",
        ]
    )


def _written(tenant: TenantSnapshot, name: str) -> str:
    """One value of the form, so that it reads as just this; "" for no bound."""
    value = tenant.weight if name == "weight" else getattr(tenant.limits, name)
    return "" if value is None else repr(value).removesuffix(".0")


class TenantScreen(Dialog):
    """Inspector and editor. An empty bound is no bound; limits not in the form stay as they are.

    What is not edited follows the run, where a timeline or another operator may change it meanwhile.
    """

    BINDINGS = bindings("tenant")
    WHERE = "tenant"

    def __init__(self, tenant: str) -> None:
        super().__init__()
        self._tenant = tenant
        self.HEADING = f"Tenant {clean(tenant, 64)}"

    def _find(self) -> TenantSnapshot | None:
        tenants = self.drift.feed.view().snapshot.tenants
        return next((tenant for tenant in tenants if tenant.name == self._tenant), None)

    def content(self) -> list[Widget]:
        tenant = self._find()
        self._facts: Static = plain("", id="facts")
        self.inputs: dict[str, Input] = {}
        self._before: dict[str, str] = {}  # what the run had, as far as it is not edited
        rows: list[Widget] = []
        for name, label in () if self.drift.feed.view().replay else _FORM:
            text = self._before[name] = "" if tenant is None else _written(tenant, name)
            self.inputs[name] = field(text, placeholder="no bound", id=name)
            rows.append(Horizontal(plain(label, classes="label"), self.inputs[name], classes="row"))
        return [self._facts, *rows]

    def hints(self) -> str:
        return super().hints() if self.inputs else hints(self.WHERE, "tenant_apply")

    def on_mount(self) -> None:
        self._follow()
        self.set_interval(FOLLOW_S, self._follow)

    def _follow(self) -> None:
        tenant = self._find()
        if tenant is None:
            self._facts.update(Content("This tenant is gone."))
            return
        self._facts.update(Content(facts(tenant)))
        for name, shown in self.inputs.items():
            if shown.value == self._before[name]:
                shown.value = self._before[name] = _written(tenant, name)

    def action_apply(self) -> None:
        self._follow()
        tenant = self._find()
        if not self.inputs:  # a recorded one is only looked at
            self.dismiss(None)
        if tenant is None or not self.inputs:
            return
        try:
            weight = positive("weight", self.inputs["weight"].value)
            limits = replace(
                tenant.limits,
                max_queued=bound("max queued", self.inputs["max_queued"].value),
                max_in_flight=bound("max in flight", self.inputs["max_in_flight"].value),
                ttl_s=seconds_bound("ttl", self.inputs["ttl_s"].value),
            )
        except FieldError as error:
            self.complain(str(error))
            return
        changed: dict[str, float | Limits] = {}
        if weight != tenant.weight:
            changed["weight"] = weight
        if limits != tenant.limits:
            changed["limits"] = limits
        if changed:
            self.send(self.drift.feed.set_tenant, self._tenant, **changed)
        else:
            self.dismiss(None)
