"""Whether the Hugging Face hub can be reached: where it can't, only what it left on this machine is asked for."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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


@contextmanager
def asking_hub(what: str, give: str, *, local: bool = False) -> Iterator[None]:
    """Something is fetched from the hub, and whatever goes wrong with it is one line.

    Args:
        what: "model 'owner/name'".
        give: what to give instead.
        local: it lies on this machine, so that no hub is looked for.

    Raises:
        ValueError: if it can't be had.
    """
    with nullcontext("") if local else hub_in_reach() as away:
        try:
            yield
        except Exception as error:  # no such repository, no network, no access, ...
            why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
            if not local:
                why = f"no such folder is here, and {away or f'the hub gives none of that name ({why})'}"
            raise ValueError(f"cannot get {what}: {why}; {give}") from error


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
