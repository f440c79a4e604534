"""Bad scenario files: every problem found, each with its file, its line, its path and what is allowed."""

# ruff: noqa: E501 (tables of cases, one a line)

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scheduler.load.scenario import ScenarioError, load_scenario

GOOD = """\
name: t
tenants:
  - {name: acme, tier: premium}
  - {name: lab, tier: batch}
load:
  - {tenant: acme, arrivals: {poisson: 1}, for: 10s}
"""


def problems(path: Path, text: str) -> list[str]:
    file = path / "s.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(str(file))
    assert all(problem.file == str(file) for problem in caught.value.problems)
    return [str(problem).removeprefix(f"{file}:") for problem in caught.value.problems]


def the_problem(path: Path, text: str) -> str:
    found = problems(path, text)
    assert len(found) == 1, found
    return found[0]


def test_the_good_file_loads(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD)
    assert load_scenario(str(tmp_path / "s.yaml")).name == "t"


# A line to add to the good file's end, or to put in place of one; the problem's line, path and words.
ADDED = [
    ("tenat: 3", "7: tenat: unknown key", "did you mean 'tenants'"),
    ("seed: 1.5", "7: seed: must be a whole number, got 1.5", ""),
    ("seed: true", "7: seed: must be a whole number, got true", ""),
    ("paper: on", "7: paper: on is a boolean to some", "write true, or quote it"),
    ("paper: No", "7: paper: No is a boolean to some", "write false"),
    ("speed: 1:30", "7: speed: 1:30 is a number in base 60", "90s"),
    ("speed: .nan", "7: speed: .nan is not allowed", "finite"),
    ("speed: -.inf", "7: speed: -.inf is not allowed", "finite"),
    ("speed: 1e999", "7: speed: the number is too large", ""),
    ("seed: 0xDE0B6B3A7640000", "7: seed: the number is too large, at most 18 decimal digits", ""),
    ("seed: 1234567890123456789", "7: seed: the number is too large, at most 18 decimal digits", ""),
    ("limits: {max_queued: 0o77777777777777777777}", "7: limits.max_queued: the number is too large", ""),
    ("seed: 010", "7: seed: 010 is octal", "leading zero"),
    ("speed: 0", "7: speed: must be above 0, got 0", ""),
    ("name: again", "7: name: the key is here twice", "first in line 1"),
    ("policy: 5", "7: policy: must be a policy's name, or {name: aging, rate: 0.01}", ""),
    ("policy: SJF", "7: policy: unknown policy 'SJF'", "did you mean 'sjf'"),
    ("policy: sjff", "7: policy: unknown policy 'sjff'", "did you mean 'sjf'"),
    ("max_queued: 9", "7: max_queued: unknown key", "it is a key of 'limits' and of 'tenants'"),
    ("seed:5\nspeed: 1", "7: a `key: value` is needed here", "a space after it"),
    (
        "limits:\n  ttl:5s\n  max_queued: 3",
        "9: a second `key: value` begins here",
        "the space after the colon above",
    ),
    ("policy: {name: aging, rat: 1}", "7: policy: policy aging: unknown parameter 'rat'", "it takes rate"),
    ("estimator: {kind: papr}", "7: estimator: unknown estimator 'papr'", "did you mean 'paper'"),
    (
        "estimator: {kind: learned, embeddings: mine}",
        "7: estimator.embeddings: 'mine' has no config.json, tokenizer.json, model.safetensors",
        "allowed: minilm, or a folder with",
    ),
    ("engine: {kind: simm}", "7: engine.kind: got 'simm'", "allowed: sim, vllm, auto"),
    ("engine: {capacity: 0}", "7: engine.capacity: must be at least 1", ""),
    ("engine: {capacity: '8'}", "7: engine.capacity: must be a whole number, got '8'", ""),
    ("engine: []", "7: engine: must be a mapping, got a list; allowed: kind, gpu, model, ", ""),
    (
        "expect: requests.failed == 0",
        "7: expect: must be a list, with `- ` before each entry, got 'requests.f",
        "",
    ),
    ("engine: {gpu: mine.yaml}", "7: engine.gpu: no such file: 'mine.yaml'", "relative to the scenario"),
    ("engine: {gpu: s.yaml}", "7: engine.gpu:", "step: Field required"),
    ("engine: {gpu: l5}", "7: engine.gpu: no GPU 'l5'; allowed: cpu, l4, l4-eager, FILE.yaml", ""),
    ("engine: {model: ./nope}", "7: engine.model: no such folder: './nope'", "relative to the scenario"),
    ("engine: {model: ~nobody-here/x}", "7: engine.model: no such folder: '~nobody-here/x'", ""),
    ("engine: {tokenizer: ./nope}", "7: engine.tokenizer: no such folder: './nope'", ""),
    (
        "dispatch: batched",
        "7: dispatch: must be `continuous` or a mapping such as {microbatch: {size: 32",
        "",
    ),
    ("dispatch: 5", "7: dispatch: must be `continuous` or a mapping such as {microbatch: ", ""),
    ("estimator: [paper]", "7: estimator: must be an estimator's name or a mapping, got a list", ""),
    ("dispatch: {microbatch: {wiat: 1s}}", "7: dispatch.microbatch.wiat: unknown key", "did you mean 'wait'"),
    ("dispatch: {microbatch: {wait: soon}}", "7: dispatch.microbatch.wait: not a duration: 'soon'", '"10ms"'),
    ("max_inflight_tokens: all", "7: max_inflight_tokens: must be `kv` or a whole number", ""),
    (
        "max_inflight_tokens: kv\ndispatch: {microbatch: {size: 8}}",
        "7: max_inflight_tokens: a micro-batch",
        "dispatch: continuous",
    ),
    ("limits: {ttl: -1s}", "7: limits.ttl: must be above 0", ""),
    ("limits: {ttl: 0}", "7: limits.ttl: must be above 0", "leave it out for no bound"),
    ("limits: {ttl: .nan}", "7: limits.ttl:", ""),
    ("timeline: [{at: -5s, policy: sjf}]", "7: timeline.0.at: must be at least 0", ""),
    ("timeline: [{at: 1e99, policy: sjf}]", "7: timeline.0.at: too long a time: 1e+99", "up to 10 years"),
    ("timeline: [{at: 1, policy: {auto: {}}}]", "7: timeline.0.policy: a policy's `name`", "scenario's own"),
    (
        "timeline: [{at: 1, tenant: {name: lab, weight: 1e308}}]",
        "7: timeline.0.tenant.weight: must be at most 1e+06",
        "",
    ),
    ("timeline: [{at: 5s}]", "7: timeline.0: exactly one of policy, burst", "got none"),
    (
        "timeline: [{at: 5s, burst: {tenant: acm, rate: 1, for: 1s}}]",
        "7: timeline.0.burst.tenant: unknown",
        "'acme'",
    ),
    ("timeline: [{at: 5s, tenant: {name: x, weight: 1}}]", "7: timeline.0.tenant.name: unknown tenant", ""),
    ("timeline: [{at: 5s, estimator: papr}]", "7: timeline.0.estimator: unknown estimator", "'paper'"),
    (
        "timeline: [{at: 5s, estimator: {kind: tenant, statistic: mode}}]",
        "7: timeline.0.estimator.statistic: got 'mode'",
        "median, mean",
    ),
    (
        "timeline: [{at: 5s, estimator: {counter: tokenizer}}]",
        "7: timeline.0.estimator.counter: unknown key",
        "allowed: kind, calibrate, statistic, embeddings",
    ),
    (
        "timeline:\n- at: 5s\n  estimator:\n    kind: learned\n    statistic: mean",
        "11: timeline.0.estimator.statistic: an option of tenant, not of learned",
        "allowed for learned: embeddings",
    ),
    (
        "timeline: [{at: 5s, estimator: {embeddings: minilm}}]",
        "7: timeline.0.estimator.embeddings: an option of learned, not of paper",
        "allowed for paper: calibrate",
    ),
    (
        "estimator: learned\ntimeline: [{at: 5s, estimator: {calibrate: false}}]",
        "8: timeline.0.estimator.calibrate: an option of paper, not of learned",
        "allowed for learned: embeddings",
    ),
    (
        "timeline: [{at: 5s, estimator: {kind: {}, statistic: mean}}]",
        "7: timeline.0.estimator.kind: must be text",
        "",
    ),
    (
        "timeline: [{at: 5s, fault: {engine: melt}}]",
        "7: timeline.0.fault.engine: got 'melt'",
        "allowed: crash",
    ),
    ("expect: [requests.faild == 0]", "7: expect.0: no run has the path", "did you mean 'requests.failed'"),
    ("expect: [requests.failed = 0]", "7: expect.0: 'requests.failed = 0' is not `PATH OP VALUE`", "<="),
    ("expect: [latency_s.tenants.nobody.e2e.p99 < 1s]", "7: expect.0: no run has the path", ""),
    ("expect: [latency_s.tiers.standard.e2e.p99 < 1s]", "7: expect.0: no run has the path", ""),
    ("expect: [requests.failed == none]", "7: expect.0: requests.failed is a number", ""),
    ("engine: !!python/object:os.system {}", "7: engine: the tag", "leave it out"),
    ("\tspeed: 1", "7: a tab cannot be used here", "indent with spaces"),
    ("--- {}", "7: a second document", "one document a file"),
    ("policy: {auto: {every: 1ms}}", "7: policy.auto.every: must be at least 1, got", ""),
    ("speed: [1", "8: while parsing a flow sequence", ""),
    ("? [a]\n: 1", "7: a key must be text", ""),
    ("\x1b", "7: control character U+001B", ""),
    ('description: "\\U00110000"', "7: the number in an escape or a %YAML line is too large", ""),
    ('description: "\\UFFFFFFFF"', "7: the number in an escape or a %YAML line is too large", ""),
]


@pytest.mark.parametrize(("line", "where", "hint"), ADDED, ids=[case[0][:40] for case in ADDED])
def test_a_bad_line(tmp_path: Path, line: str, where: str, hint: str) -> None:
    problem = the_problem(tmp_path, f"{GOOD}{line}\n")
    assert problem.startswith(where)
    assert hint in problem


STREAMS = [
    ("{tenant: acmee, arrivals: {poisson: 1}, for: 1s}", "6: load.0.tenant: unknown tenant 'acmee'", "'acme'?"),
    ("{tenant: {acme: 1, x: 1}, arrivals: {poisson: 1}, for: 1s}", "6: load.0.tenant.x: unknown tenant", ""),
    ("{tenant: 5, arrivals: {poisson: 1}, for: 1s}", "6: load.0.tenant: must be a tenant's name, or several", "got 5"),
    ("{tenant: acme, arrivals: 5, for: 1s}", "6: load.0.arrivals: must be `at-once` or a mapping such as {poisson: 4.0}, got 5", ""),
    ("{tenant: {acme: 0}, arrivals: {poisson: 1}, for: 1s}", "6: load.0.tenant: at least one share", ""),
    ("{arrivals: {poisson: 1}, for: 1s}", "6: load.0: tenant is required", ""),
    ("{tenant: acme, for: 1s}", "6: load.0: exactly one of arrivals, trace is needed, got none", ""),
    ("{tenant: acme, arrivals: {poison: 1}, for: 1s}", "6: load.0.arrivals.poison: unknown key", "'poisson'?"),
    ("{tenant: acme, arrivals: {poisson: -4}, for: 1s}", "6: load.0.arrivals.poisson: must be above 0", ""),
    ("{tenant: acme, arrivals: {diurnal: {low: 0, high: 1e9}}, count: 1}", "6: load.0.arrivals.diurnal.high: must be at most", "1e+06"),
    ("{tenant: acme, arrivals: {gamma: {rate: 1, cv: 1e-9}}, for: 1s}", "6: load.0.arrivals.gamma.cv: must be at least 0.01", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, lengths: {lognormal: {report: [80, 99]}}}", "6: load.0.lengths.lognormal.report.1: must be at most 10", ""),
    ("{tenant: acme, arrivals: {diurnal: {low: 3, high: 2}}, for: 1s}", "6: load.0.arrivals.diurnal: low must not be above high", "3 and 2"),
    ("{tenant: acme, arrivals: {poisson: 1, at-once: true}, for: 1s}", "6: load.0.arrivals: exactly one of poisson, uniform", "got poisson, at-once"),
    ("{tenant: acme, arrivals: {poisson: fast}, for: 1s}", "6: load.0.arrivals.poisson: must be a number", ""),
    ("{tenant: acme, arrivals: closed, for: 1s}", "6: load.0.arrivals: must be `at-once` or a mapping such as {poisson: 4.0}, got 'closed'", ""),
    ("{tenant: acme, arrivals: {poisson: 1}}", "6: load.0: without an end", "`count: 1000`"),
    ("{tenant: acme, arrivals: {at-once: 5}, for: 1s}", "6: load.0.arrivals.at-once: got 5; allowed: true", ""),
    ("{tenant: acme, arrivals: at-once, for: 1s}", "6: load.0: at-once needs `count`", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 0}", "6: load.0.for: must be above 0, got 0", ""),
    ("{tenant: acme, arrivals: {uniform: {min: 2s, max: 1s}}, count: 1}", "6: load.0.arrivals.uniform: min must", ""),
    ("{tenant: acme, arrivals: {ramp: {from: 0, to: 0, over: 1s}}, for: 1s}", "6: load.0.arrivals.ramp: from and", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, mix: {report: 1}, prompts: {file: s.yaml}}", "6: load.0: mix is for", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, mix: {qa: 1}}", "6: load.0.mix.qa: got 'qa'; allowed: short_qa", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, max_tokens: 0}", "6: load.0.max_tokens: must be `base`", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, max_tokens: 1e9}", "6: load.0.max_tokens: must be `base`", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, max_tokens: {report: 9}}", "6: load.0: max_tokens has nothing", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, lengths: {profile: neer}}", "6: load.0.lengths.profile: got", "'near'?"),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, lengths: {}}", "6: load.0.lengths: exactly one of", ""),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, after: x}", "6: load.0.after: no stream is named 'x'", "drained"),
    ("{name: x, tenant: acme, arrivals: {poisson: 1}, for: 1s, after: x}", "6: load.0.after: the streams wait for", ""),
    ("{name: x, tenant: acme, arrivals: at-once, count: 1, after: y}\n  - {name: y, tenant: acme, arrivals: at-once, count: 1, after: drained}", "6: load.0.after: the streams wait for each other: x after y after x", ""),
    ("{name: drained, tenant: acme, arrivals: {poisson: 1}, for: 1s}", "6: load.0.name: `drained` has a meaning of its own", "another name"),
    ("{tenant: acme, trace: {file: ., format: azure}}", "6: load.0.trace.file: is a folder: '.'; paths are relative", ""),
    ("{tenant: acme, trace: {file: /dev/null, format: azure}}", "6: load.0.trace.file: not a regular file: '/dev/null'", ""),
    (f"{{tenant: acme, trace: {{file: {'x' * 5000}, format: azure}}}}", "6: load.0.trace.file: no such file: 'xxx", ""),
    ("{tenant: acme, trace: {file: azure.csv, format: azure}}", "6: load.0.trace.file: no such file: 'azure.csv'", ""),
    ("{tenant: acme, trace: {file: s.yaml, format: azure, speed: 1e-9}}", "6: load.0.trace.speed: must be at least 0.001", ""),
    ("{tenant: acme, trace: {file: s.yaml, format: azure, from: 9s, until: 9s}}", "6: load.0.trace: until must be after from", "9s and 9s"),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, lengths: {profile: near, model: m}}", "6: load.0.lengths: model goes with file", ""),
    ("{tenant: acme, trace: {file: s.yaml, format: azure}, mix: {report: 1}}", "6: load.0: a trace brings its own requests", "mix"),
    ("{tenant: acme, trace: {file: s.yaml, format: azzure}}", "6: load.0.trace.format: got 'azzure'", "'azure'?"),
    ("{tenant: acme, trace: {file: s.yaml, format: azure}}", "6: load.0.trace: 's.yaml' line 1: no column", "TIMESTAMP"),
    ("{tenant: acme, arrivals: {poisson: 1}, for: 1s, lengths: {file: s.yaml}}", "6: load.0.lengths: 's.yaml' line 1:", ""),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "where", "hint"), STREAMS, ids=[case[1][3:50] for case in STREAMS])
def test_a_bad_stream(tmp_path: Path, stream: str, where: str, hint: str) -> None:
    text = GOOD.replace("{tenant: acme, arrivals: {poisson: 1}, for: 10s}", stream)
    problem = the_problem(tmp_path, text)
    assert problem.startswith(where)
    assert hint in problem


TENANTS = [
    ("{name: lab}", "4: tenants.1.name: the name 'lab' is taken", ""),
    ("{name: b, tier: premum}", "4: tenants.1.tier: got 'premum'", "did you mean 'premium'"),
    ("{name: b, weight: 0}", "4: tenants.1.weight: must be at least 1e-06", ""),
    ("{name: b, ttft: 1s}", "4: tenants.1.ttft: unknown key", "it is a key of 'slo'"),
    ("{name: b, slo: {ttfb: 1s}}", "4: tenants.1.slo.ttfb: unknown key; allowed: ttft, e2e, tpot", ""),
    ('{name: "b\\e[31m"}', "4: tenants.1.name: holds a control or invisible character", ""),
    ("{name: ' b'}", "4: tenants.1.name: must be 1 to 64 characters", "no space at the ends"),
    ("{tier: batch}", "4: tenants.1.name: is required", ""),
    ("b", "4: tenants.1: must be a mapping, got 'b'; allowed: max_queued, ", ", name, tier, weight, slo"),
    ("{name: b, slo: 2s}", "4: tenants.1.slo: must be a mapping, got '2s'; allowed: ttft, e2e, tpot", ""),
]


@pytest.mark.parametrize(("tenant", "where", "hint"), TENANTS, ids=[case[1][3:40] for case in TENANTS])
def test_a_bad_tenant(tmp_path: Path, tenant: str, where: str, hint: str) -> None:
    text = GOOD.replace("{name: acme, tier: premium}", "{name: lab}").replace(
        "{name: lab, tier: batch}", tenant
    )
    problem = the_problem(tmp_path, text.replace("tenant: acme", "tenant: lab"))
    assert problem.startswith(where)
    assert hint in problem


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        GOOD.replace("premium", "premum")
        .replace("tenant: acme", "tenant: acmee")
        .replace("poisson: 1", "poisson: x")
    )
    lines = problems(tmp_path, text + "policy: sjff\nspeed: .nan\nexpect: [a.b == 1]\n")
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in lines] == [
        "3 tenants.0.tier",
        "6 load.0.arrivals.poisson",
        "6 load.0.tenant",
        "7 policy",
        "8 speed",
        "9 expect.0",
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"just text", "must be a mapping, got 'just text'"),
        (b"- 1", "must be a mapping, got a list"),
        (b"name: a\ntenants:\n  - name: b\n - name: c", "s.yaml:4: .* in the middle of another: check the indentation"),
        (b"name: \xff", "not UTF-8 text"),
        (b"#" * (1 << 20) + b"#", "larger than"),
        (b"a: " + b"[" * 1200, "nested too deeply"),
        (b"a: " + b"[" * 40 + b"]" * 40, "nested too deeply"),
        (b"a: &a [*a]", "nested too deeply, or inside itself"),
        (b"a: &a [1,1,1,1,1,1,1,1,1,1]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 10)) for i in range(6)
        ), "aliases expanded: more than is allowed"),
    ],
    ids=["empty", "text", "list", "indentation", "latin-1", "huge", "deep", "deep closed", "cycle", "a billion laughs"],
)  # fmt: skip
def test_files_that_are_no_scenario(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(content)
    with pytest.raises(ScenarioError, match=what):
        load_scenario(str(file))


def test_an_unknown_scenario_names_those_that_ship() -> None:
    with pytest.raises(ScenarioError, match=r"demmo:1: no such file.*cpu-real, demo.*did you mean 'demo'"):
        load_scenario("demmo")


def test_a_folder_is_no_scenario(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="is a folder"):
        load_scenario(str(tmp_path))


def test_a_pipe_is_no_scenario(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ScenarioError, match="not a regular file; allowed"):
        load_scenario(str(tmp_path / "pipe"))


def test_a_hostile_key_is_escaped_in_the_message(tmp_path: Path) -> None:
    assert "\\x1b[2J" in the_problem(tmp_path, GOOD + '"\\e[2J": 1\n')


def test_merge_keys_and_aliases_work(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        GOOD.replace("- {name: acme, tier: premium}", "- &a {name: acme, tier: premium, weight: 5}").replace(
            "- {name: lab, tier: batch}", "- {<<: *a, name: lab}"
        )
    )
    lab = load_scenario(str(tmp_path / "s.yaml")).tenants[1]
    assert (lab.name, lab.tier, lab.weight) == ("lab", "premium", 5)
