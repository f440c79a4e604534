"""What a scenario and the command line make of a run: defaults, and what is refused with its place."""

# ruff: noqa: E501 (tables of cases, one a line)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler.core.types import Request
from scheduler.load.scenario import ScenarioError, load_scenario
from scheduler.load.workload import SwitchEstimator
from scheduler.plan import Plan, PlanError, make_plan
from scheduler.twin.profile_file import load_profile, profile_text

HEAD = """\
name: t
tenants: [{name: a}]
load: [{tenant: a, arrivals: at-once, count: 4}]
"""


def planned(folder: Path, text: str, **command_line: Any) -> Plan:
    (folder / "s.yaml").write_text(HEAD + text)
    return make_plan(load_scenario(str(folder / "s.yaml")), **command_line)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("engine: {capacity: 4096}", "4: engine.capacity: must be at most 2048 (simulated NVIDIA L4"),
        ("dispatch: {microbatch: {size: 4096}}", "4: dispatch.microbatch.size: must be at most 2048"),
        ("dispatch: {microbatch: {size: 64}}\nengine: {capacity: 32}", "4: dispatch.microbatch.size: 64 never run at once"),
        ("engine: {args: {max_model_len: 0}}", "4: engine.args.max_model_len: 0 is no number of tokens"),
        ("engine: {args: {max_modle_len: 9}}", "4: engine.args.max_modle_len: no such argument; did you mean"),
        ("engine: {kind: vllm}", "4: engine.model: engine vllm needs a model: smollm2, a folder"),
        ("engine: {kind: vllm, model: .}", "4: engine.model: model folder"),
        ("engine: {model: gpt-9}", "4: engine.model: nothing simulates 'gpt-9' on l4; allowed: qwen1.5"),
        ("engine: {gpu: cpu, model: llama}", "4: engine.model: nothing simulates 'llama' on cpu; allowed: smollm2"),
        ("engine: {kind: auto, model: ''}", "4: engine.model: a model's name cannot be empty"),
        ("estimator: oracle", "4: estimator: the oracle knows true lengths, which only --clock virtual has"),
        ("timeline: [{at: 1, estimator: oracle}]", "4: timeline.0.estimator: the oracle knows true lengths"),
        ("estimator: {counter: tokenizer}", "4: estimator.counter: the simulated engine has no tokenizer"),
        ("estimator: {counter: tokenizer}\nengine: {tokenizer: .}", "5: engine.tokenizer: model folder"),
    ],
)  # fmt: skip
def test_the_file_is_to_blame(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        planned(tmp_path, text)
    assert str(caught.value).removeprefix(f"{tmp_path}/s.yaml:").startswith(problem)


@pytest.mark.parametrize(
    ("command_line", "problem"),
    [
        ({"engine": "vllm"}, "engine vllm needs a model"),
        ({"model": "gpt-9"}, "nothing simulates 'gpt-9'"),
        ({"model": ""}, "a model's name cannot be empty"),
        ({"policy": "sfj"}, "unknown policy 'sfj'"),
        ({"policy": ""}, "unknown policy ''"),
    ],
)
def test_the_command_line_is_to_blame(tmp_path: Path, command_line: dict[str, str], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        planned(tmp_path, "", **command_line)


@pytest.mark.parametrize(
    ("engine", "profile"),
    [
        ("{}", "l4/qwen1.5-1.8b-chat"),
        ("{gpu: cpu}", "cpu/smollm2"),
        ("{gpu: l4-eager}", "l4-eager/qwen1.5-1.8b-chat"),
        ("{model: Qwen/Qwen1.5-1.8B-Chat}", "l4/qwen1.5-1.8b-chat"),
        ("{model: smollm2}", "cpu/smollm2"),
        ("{kind: vllm, model: gpt-9}", "l4/qwen1.5-1.8b-chat"),
        ("{kind: vllm, model: smollm2, gpu: l4}", "l4/qwen1.5-1.8b-chat"),
    ],
)
def test_what_is_simulated(tmp_path: Path, engine: str, profile: str) -> None:
    plan = planned(tmp_path, f"engine: {engine}", engine="sim")
    assert plan.profile is not None
    assert plan.profile.name == profile


@pytest.mark.parametrize(
    ("text", "capacity"),
    [
        ("", 32),
        ("dispatch: {microbatch: {size: 64}}", 64),
        ("engine: {gpu: small.yaml}", 16),
        ("engine: {gpu: small.yaml}\ndispatch: {microbatch: {size: 8}}", 16),
    ],
)
def test_the_capacity_where_none_is_asked_for(tmp_path: Path, text: str, capacity: int) -> None:
    small = replace(load_profile("cpu", "smollm2"), max_num_batched_tokens=16)
    (tmp_path / "small.yaml").write_text(profile_text(small))
    assert planned(tmp_path, text).capacity == capacity


COUNTED = '"prompt": "how long is it", "prompt_tokens": 50'
BURST = "timeline: [{at: 1, burst: {tenant: a, rate: 1, for: 1}}]"


@pytest.mark.parametrize(
    ("row", "timeline", "needs_one"),
    [
        ('"prompt_tokens": 5', "", False),
        (COUNTED, "", False),
        ('"prompt": "how long is it"', "", True),
        (COUNTED, BURST, True),
    ],
)
def test_a_load_that_knows_its_prompt_tokens_needs_no_tokenizer(
    tmp_path: Path, row: str, timeline: str, needs_one: bool
) -> None:
    (tmp_path / "t").write_text(f'{{"arrival_s": 0, {row}}}\n')
    trace = "load: [{tenant: a, trace: {file: t, format: jsonl}}]"
    (tmp_path / "s.yaml").write_text(
        f"name: t\ntenants: [{{name: a}}]\n{trace}\nestimator: {{counter: tokenizer}}\n{timeline}"
    )
    scenario = load_scenario(str(tmp_path / "s.yaml"))
    if needs_one:
        with pytest.raises(ScenarioError, match=r"4: estimator\.counter: .*models prepare smollm2"):
            make_plan(scenario)
    else:
        [request] = make_plan(scenario).workload().take(0.0)
        assert isinstance(request, Request)
        assert request.prompt_tokens in (5, 50)


def test_an_estimator_of_the_timeline_has_the_scenarios_options(tmp_path: Path) -> None:
    plan = planned(
        tmp_path,
        """
estimator: {kind: paper, statistic: mean, calibrate: false}
timeline: [{at: 1, estimator: tenant}, {at: 2, estimator: {kind: tenant, statistic: median}}, {at: 3, estimator: paper}]
""",
    )
    actions = plan.workload().take(3.0)
    names = [action.estimator.name for action in actions if isinstance(action, SwitchEstimator)]
    assert names == ["tenant (mean)", "tenant", "paper (no calibration)"]


def test_the_oracle_may_come_in_virtual_time(tmp_path: Path) -> None:
    assert planned(tmp_path, "timeline: [{at: 1, estimator: oracle}]", clock="virtual").simulated
