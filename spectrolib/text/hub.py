"""Whether the Hugging Face hub can be reached: where it can't, only what it left on this machine is asked for."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

SECONDS = 5.0
"""To wait for an answer."""


@contextmanager
def hub_in_reach() -> Iterator[str]:
    """Without a network the hub's own library asks again and again for half a minute. Here it is asked once.

    Yields what to say of a hub that can't be reached; nothing where it can. Behind a proxy it is taken to be.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        yield ""
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield f"the hub ({urlsplit(constants.ENDPOINT).hostname}) can't be reached"
    finally:
        constants.HF_HUB_OFFLINE = False


@functools.cache
def _answers(endpoint: str) -> bool:
    """Whether something listens there."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")):
        return True
    parts = urlsplit(endpoint)
    try:
        address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
        socket.create_connection(address, timeout=SECONDS).close()
    except OSError:
        return False
    return True
