"""Where to listen: an address as the command line has it, and whether others can reach it."""

from __future__ import annotations

from ipaddress import ip_address


class ListenError(OSError):
    """This address cannot be listened on as asked."""


def parse_listen(text: str) -> tuple[str, int]:
    """("127.0.0.1", 8000) of "127.0.0.1:8000", ":8000" or "[::1]:8000". Raises ListenError."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    host = host or "127.0.0.1"
    digits = port.isascii() and port.isdigit() and len(port) < 6
    if not (colon and _is_name(host) and digits and int(port) < 65536):
        raise ListenError(f"--listen {text!a}: HOST:PORT is needed, such as 127.0.0.1:8000")
    return host, int(port)


def _is_name(host: str) -> bool:
    """Whether it can be looked up: "a..b" and "[::1" cannot."""
    if "[" in host or "]" in host:
        return False
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def check_open(host: str) -> None:
    """Raise ListenError for an address that others can reach, where there are no keys."""
    if not is_loopback(host):
        raise ListenError(
            f"listening on {host!a} lets others in: give the tenants keys (`keys:` in serve --config FILE), "
            "or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether this address to listen on can only be reached from the same machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
