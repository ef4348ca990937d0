"""The HTTP client below the vendors' SDKs: limits on connections and time, and no proxy for this machine's own servers.

Adapters hand it to their SDK. All three SDKs speak through httpx2, so that cancelling a call closes its connection.
"""

from __future__ import annotations

import functools
import ipaddress
import ssl
from typing import Any
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 5.0
MAX_CONNECTIONS = 1000
"""Above the largest concurrency of a model: waiting is done where it counts toward the deadline, never in the pool."""


def async_client(base_url: str) -> Any:
    """Return an `httpx2.AsyncClient` for a vendor's server; the *_PROXY variables count only for hosts elsewhere."""
    import httpx2

    return httpx2.AsyncClient(
        verify=tls(),
        trust_env=not is_loopback(base_url),
        follow_redirects=True,
        timeout=timeout(600.0),
        limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=100),
    )


def sync_client() -> Any:
    """Return an `httpx2.Client` for an SDK that makes one beside the async one and would read the authorities for it."""
    import httpx2

    return httpx2.Client(verify=tls())


@functools.cache
def tls() -> ssl.SSLContext:
    """Return the one TLS context of all clients: reading the certificate authorities takes tens of milliseconds each time."""
    import httpx2

    return httpx2.create_ssl_context()


def timeout(seconds: float) -> Any:
    """Return the time-outs of one request: to connect, and for each read. The call's deadline is kept elsewhere."""
    import httpx2

    return httpx2.Timeout(seconds, connect=min(CONNECT_TIMEOUT_S, seconds))


def is_loopback(base_url: str) -> bool:
    """Return whether a URL names this machine."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
