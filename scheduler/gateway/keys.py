"""Who is asking: API keys as the digests of a config, compared in constant time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest
from urllib.parse import urlsplit

from aiohttp import hdrs

from scheduler.gateway.errors import ApiError
from scheduler.gateway.listen import is_loopback
from scheduler.plan import PlanError

DEFAULT_TENANT = "default"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MIN_KEY_CHARS = 16


class BadKey(PlanError):
    """A key of the config cannot be used; says which, never what it is."""


def digest(spec: str, where: str, environ: Mapping[str, str] = os.environ) -> bytes:
    """The SHA-256 of the key that ``sha256:HEX`` or ``env:NAME`` stands for. Raises BadKey."""
    if _DIGEST.fullmatch(spec):
        return bytes.fromhex(spec.removeprefix("sha256:"))
    if spec.startswith("env:"):
        value = environ.get(spec.removeprefix("env:"), "").strip()  # as that of a header is
        if not value:
            raise BadKey(f"{where}: the environment variable {spec.removeprefix('env:')} is not set")
        if len(value) < MIN_KEY_CHARS:
            raise BadKey(f"{where}: a key needs at least {MIN_KEY_CHARS} characters")
        return _digest_of(value)
    raise BadKey(
        f"{where}: must be env:NAME or sha256: and the 64 hexadecimal digits of the key's SHA-256; "
        "a key itself does not belong in a file"
    )


class Keys:
    """Digests of tenants and of the operator. Without any, whoever reaches us is ``default`` and operator."""

    def __init__(
        self,
        tenants: Mapping[str, Sequence[str]] = {},
        operator: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Of specs as ``digest`` reads them. Raises BadKey."""
        self._tenants = [
            (digest(spec, f"keys.{tenant}", environ), tenant)
            for tenant, specs in tenants.items()
            for spec in specs
        ]
        self._operator = [digest(spec, "operator", environ) for spec in operator]
        everything = [each for each, _ in self._tenants] + self._operator
        if len(set(everything)) != len(everything):
            raise BadKey("keys: the same key is there twice")
        self.open = not everything  # there are no keys at all

    @property
    def has_tenants(self) -> bool:
        return bool(self._tenants)

    def tenant(self, headers: Mapping[str, str]) -> str:
        """The tenant of a request. Raises ApiError 401, or 403 for the operator's key."""
        if self.open:
            _check_local(headers)
            return DEFAULT_TENANT
        presented = _presented(headers)
        found = ""
        for stored, tenant in self._tenants:  # all of them, whichever fits
            if compare_digest(stored, presented):
                found = tenant
        if found:
            return found
        if self._is_operator(presented):
            raise ApiError(403, "the operator's key is no tenant's", code="not_a_tenant")
        raise ApiError(401, "this API key is not known", code="invalid_api_key")

    def operator(self, headers: Mapping[str, str]) -> None:
        """Return for the operator. Raises ApiError 401, or 403 for a tenant's key."""
        if self.open:
            _check_local(headers)
            return
        presented = _presented(headers)
        if self._is_operator(presented):
            return
        if sum(compare_digest(stored, presented) for stored, _ in self._tenants):
            raise ApiError(403, "this needs the operator's key", code="operator_only")
        raise ApiError(401, "this API key is not known", code="invalid_api_key")

    def _is_operator(self, presented: bytes) -> bool:
        return sum(compare_digest(stored, presented) for stored in self._operator) > 0


def _presented(headers: Mapping[str, str]) -> bytes:
    """The digest of the key that came. Raises ApiError 401."""
    scheme, _, key = headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise ApiError(401, "an API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
    return _digest_of(key.strip())


def _digest_of(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()  # which may be any bytes


def _check_local(headers: Mapping[str, str]) -> None:
    """Where there are no keys. Raises ApiError 403."""
    if not _is_local(f"//{headers.get(hdrs.HOST, '')}"):
        # A name that a web page had resolved to this machine; without keys nothing else stops it.
        raise ApiError(403, "without keys, only localhost may be asked for", code="bad_host")
    origin = headers.get(hdrs.ORIGIN)  # what is no web page has none
    if origin is not None and not _is_local(origin):
        raise ApiError(403, "without keys, no other site's page may ask", code="bad_origin")


@lru_cache(64)
def _is_local(url: str) -> bool:
    """Of "//localhost:8000", "http://127.0.0.1", "//[::1]:8000"."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
