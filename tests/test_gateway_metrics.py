"""``/metrics``: what it says is what the books say, its names and labels do not change, and who reads it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gateway_kit import ACME, GLOBEX, OPERATOR, Served, bearer, completion, serving, two_keys
from prometheus_client.parser import text_string_to_metric_families

GOLDEN = Path(__file__).parent / "golden" / "metrics.txt"
Samples = dict[tuple[str, tuple[str, ...]], float]


async def scrape(served: Served, key: str = OPERATOR) -> str:
    async with served.http.get(served.url + "/metrics", headers=bearer(key)) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        return await answer.text()


def samples(text: str) -> Samples:
    families = text_string_to_metric_families(text)
    return {
        (s.name, tuple(s.labels[name] for name in sorted(s.labels))): s.value
        for family in families
        for s in family.samples
    }


async def test_the_figures() -> None:
    async with serving(keys=two_keys()) as served:
        for key in (ACME, ACME, GLOBEX):
            await served.post("/v1/completions", completion(), key)
        served.run.session.pause(by="test")
        told = samples(await scrape(served))
        assert told["driftsched_requests_ended_total", ("finished", "acme")] == 2
        assert told["driftsched_requests_ended_total", ("finished", "globex")] == 1
        assert told["driftsched_requests_ended_total", ("expired", "globex")] == 0
        assert told["driftsched_tokens_total", ("output", "acme")] == 10
        assert told["driftsched_ttft_seconds_count", ("acme",)] == 2
        buckets = [told["driftsched_ttft_seconds_bucket", (le, "acme")] for le in ("0.01", "0.5", "+Inf")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == 2
        assert told["driftsched_queue_size", ("acme",)] == 0
        assert told["driftsched_policy", ("fifo",)] == 1
        assert told["driftsched_paused", ()] == 1
        assert told["driftsched_engine_up", ()] == 1
        assert told["driftsched_estimate_error_tokens_count", ("acme",)] == 2
        assert told["vllm:num_requests_running", ("placeholder",)] == 0


async def test_only_the_operator_reads_them() -> None:
    async with serving(keys=two_keys()) as served:
        for key, status in ((ACME, 403), (None, 401)):
            assert (await served.get("/metrics", key))[0] == status


def test_the_grafana_dashboard_asks_for_what_there_is() -> None:
    file = Path(__file__).resolve().parent.parent / "docs" / "grafana.json"
    asked = {t["expr"] for panel in json.loads(file.read_text())["panels"] for t in panel["targets"]}
    names = {name for expr in asked for name in re.findall(r"(?:driftsched_|vllm:)\w+", expr)}
    known = set(re.findall(r"^([\w:]+)", GOLDEN.read_text(), re.MULTILINE))
    histograms = {name.removesuffix("_count") + "_bucket" for name in known if name.endswith("_count")}
    assert len(names) > 10
    assert names <= known | histograms | {"driftsched_loop_lag_p99_seconds"}


async def test_golden() -> None:
    """Names, types, help and labels; histogram buckets and values left out."""
    async with serving(keys=two_keys()) as served:
        await served.post("/v1/completions", completion(prompt="tenant\ntext"), ACME)
        await served.post("/v1/completions", completion(), GLOBEX)
        lines = (await scrape(served)).splitlines()
    kept = [re.sub(r" [^ ]+$", "", line) if line[0] != "#" else line for line in lines]
    kept = [
        line for line in kept if "_created" not in line and "_bucket" not in line and "loop_lag" not in line
    ]
    assert "\n".join(kept) + "\n" == GOLDEN.read_text()
