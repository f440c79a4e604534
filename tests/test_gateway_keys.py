"""Who may do what: keys of tenants and of the operator, addresses, and the config that names them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import aiohttp
import pytest
from gateway_kit import ACME, ENVIRON, GLOBEX, OPERATOR, bearer, completion, serving, two_keys

from scheduler.cli import main
from scheduler.core.types import Request
from scheduler.gateway.config import load_config
from scheduler.gateway.errors import ApiError
from scheduler.gateway.keys import BadKey, Keys
from scheduler.gateway.listen import ListenError, is_loopback, parse_listen
from scheduler.load.scenario import ScenarioError
from scheduler.load.schema import TenantSection

COMPLETIONS = "/v1/completions"


async def test_a_key_is_its_tenant() -> None:
    async with serving(keys=two_keys()) as served:
        seen: list[Request] = []
        served.run.observers.append(seen.append)
        for key in (ACME, GLOBEX):
            assert (await served.post(COMPLETIONS, completion(), key))[0] == 200
        assert [request.tenant for request in seen] == ["acme", "globex"]


async def test_no_key_another_key_and_the_operators_key() -> None:
    async with serving(keys=two_keys()) as served:
        for key, status in ((None, 401), ("wrong", 401), (ACME + "x", 401), ("", 401), (OPERATOR, 403)):
            got, body, headers = await served.post(COMPLETIONS, completion(), key)
            assert got == status
            assert ("WWW-Authenticate" in headers) == (status == 401)
            assert ACME not in str(body)
            assert (await served.get("/v1/models", key))[0] == status
        async with served.http.get(served.url + "/v1/models", headers={"Authorization": ACME}) as answer:
            assert answer.status == 401, "without a scheme"


async def test_without_keys_any_authorization_is_default() -> None:
    async with serving() as served:
        seen: list[Request] = []
        served.run.observers.append(seen.append)
        for key in (None, "anything"):
            assert (await served.post(COMPLETIONS, completion(), key))[0] == 200
        assert [request.tenant for request in seen] == ["default", "default"]


async def test_without_keys_other_names_of_this_machine_are_refused() -> None:
    async with serving() as served, aiohttp.ClientSession() as http:
        for host, status in (
            ("evil.example", 403),
            ("localhost", 200),
            ("127.0.0.1:8000", 200),
            ("[::1]", 200),
        ):
            async with http.get(served.url + "/v1/models", headers={"Host": host}) as answer:
                assert answer.status == status, host


async def test_without_keys_a_web_page_of_another_site_steers_nothing() -> None:
    async with serving() as served, aiohttp.ClientSession() as http:
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            ("http://[", 403),
            ("http://localhost:3000", 200),
        ):
            async with http.post(served.url + "/control/pause", headers={"Origin": origin}) as answer:
                assert answer.status == status, origin
                assert served.run.scheduler.paused == (status == 200)


async def test_one_tenants_full_queue_is_not_the_others() -> None:
    tenants = [TenantSection(name="acme", max_queued=0), TenantSection(name="globex")]
    async with serving(keys=two_keys(), tenants=tenants) as served:
        assert (await served.post(COMPLETIONS, completion(), ACME))[0] == 429
        assert (await served.post(COMPLETIONS, completion(), GLOBEX))[0] == 200


def test_the_operator_is_known_by_its_own_key_only() -> None:
    keys = two_keys()
    keys.operator(bearer(OPERATOR))
    for key, status in ((ACME, 403), ("wrong", 401)):
        with pytest.raises(ApiError) as refused:
            keys.operator(bearer(key))
        assert refused.value.status == status
    Keys().operator({"Host": "localhost"})
    with pytest.raises(ApiError):
        Keys({"acme": ["env:ACME"]}, environ=ENVIRON).operator(bearer(ACME))


def test_keys_by_digest() -> None:
    keys = Keys({"acme": [f"sha256:{sha256(ACME.encode()).hexdigest()}"]})
    assert keys.tenant(bearer(ACME)) == "acme"
    assert keys.tenant({"Authorization": f"bearer {ACME}"}) == "acme"


@pytest.mark.parametrize("name", ["FILE", "BYTES"])
def test_keys_out_of_the_environment(name: str) -> None:
    environ = {"FILE": f" {ACME}\n", "BYTES": f"{ACME}\udcff"}  # out of a file; not UTF-8
    keys = Keys({"acme": [f"env:{name}"]}, environ=environ)
    assert keys.tenant(bearer(environ[name].strip())) == "acme"


@pytest.mark.parametrize(
    ("tenants", "operator", "what"),
    [
        ({"acme": ["env:NOWHERE"]}, [], "keys.acme: the environment variable NOWHERE is not set"),
        ({"acme": ["env:SHORT"]}, [], "at least 16 characters"),
        ({"acme": ["env:BLANK"]}, [], "is not set"),
        ({"acme": ["plain-text-key-in-a-file"]}, [], "does not belong in a file"),
        ({"acme": ["sha256:12"]}, [], "64 hexadecimal"),
        ({"acme": ["env:ACME"], "globex": ["env:ACME"]}, [], "twice"),
        ({"acme": ["env:ACME"]}, ["env:ACME"], "twice"),
    ],
)
def test_bad_keys(tenants: dict[str, list[str]], operator: list[str], what: str) -> None:
    with pytest.raises(BadKey, match=what) as refused:
        Keys(tenants, operator, ENVIRON | {"SHORT": "abc" + 16 * " ", "BLANK": " "})
    assert "plain-text" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", ""])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_listen_addresses() -> None:
    assert parse_listen("127.0.0.1:8000") == ("127.0.0.1", 8000)
    assert parse_listen(":0") == ("127.0.0.1", 0)
    assert parse_listen("[::1]:80") == ("::1", 80)
    for bad in (
        "8000",
        "127.0.0.1",
        "host:port",
        "h:70000",
        "h:-1",
        "h:" + "9" * 5000,
        "a..b:80",
        "[::1:80",
        "::1]:80",
        "\udcff:80",
    ):
        with pytest.raises(ListenError, match="HOST:PORT"):
            parse_listen(bad)


def test_other_addresses_need_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen", "0.0.0.0:0"]) == 2
    assert "give the tenants keys" in capsys.readouterr().err


CONFIG = """\
name: shop
engine: {capacity: 4}
tenants:
  - {name: acme, tier: premium, max_queued: 10}
  - {name: globex}
keys:
  acme: [env:ACME, "sha256:%s"]
operator: env:OPERATOR
""" % ("0" * 64)


def test_a_config(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(CONFIG)
    config = load_config(str(path))
    assert config.keys == {"acme": ("env:ACME", "sha256:" + "0" * 64)}
    assert config.operator == ("env:OPERATOR",)
    assert config.load == ()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("acme: [env", "acne: [env"), r":7: keys.acne: .*; did you mean 'acme'\?"),
        (("env:OPERATOR", "plain-secret"), "does not belong in a file"),
        (("operator:", "operators:"), "did you mean"),
        (("engine: {capacity: 4}", "load: [{tenant: acme, rate: 1, for: 1s}]"), "gets its load from clients"),
    ],
)
def test_errors_in_a_config(tmp_path: Path, change: tuple[str, str], what: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(CONFIG.replace(*change))
    with pytest.raises(ScenarioError, match=what) as refused:
        load_config(str(path))
    assert "serve.yaml:" in str(refused.value)
    assert "plain-secret" not in str(refused.value)
