"""Whether a server has a model: asks for the model itself, and where that address is unknown for the list of all.

Adapters whose API has both use it for their probe.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from utils.llm.adapter import VendorError
from utils.llm.faults import Endpoint, names_the_model, vendor_fault

PROBE_TIMEOUT_S = 5.0


async def look_up(
    endpoint: Endpoint, retrieve: Callable[[], Awaitable[Any]], list_all: Callable[[], Awaitable[Any]]
) -> None:
    """Return if the model is there.

    Raises
    ------
    VendorError
        If it is not, or the server cannot tell.
    """
    try:
        await retrieve()
    except Exception as error:  # SDKs raise nearly anything
        fault, first = vendor_fault(endpoint, error), error
    else:
        return
    if not fault.unknown_model:
        raise fault
    try:
        page = await list_all()
        known = {str(getattr(model, "id", "")) for model in page.data or ()}
    except Exception as error:  # as above
        second = vendor_fault(endpoint, error)
        if not second.unknown_model:
            raise second from error
        if names_the_model(first):
            raise fault from error
        text = f"{endpoint.provider} {endpoint.model}: the server neither shows nor lists models; only a call can tell"
        raise VendorError(text, kind="request") from error
    if endpoint.model not in known:
        raise fault
