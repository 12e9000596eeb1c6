"""Access to the Hugging Face hub. If the hub cannot be reached, only files that are already on this machine are
used."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

SECONDS = 5.0
"""How long to wait for the hub's answer."""


@contextmanager
def hub_in_reach() -> Iterator[str]:
    """Try once whether the hub answers; if not, switch its library to offline mode for the time of the block.

    Without this the library retries for half a minute. Yields an empty text if the hub can be reached, else a phrase
    for error messages. With a proxy set, the hub is assumed to be in reach.
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
    """A block that fetches something from the hub: any error in it becomes a `ValueError` of one line.

    Args:
        what: what is fetched, for the message, such as "model 'owner/name'".
        give: advice for the message: what the user could give instead.
        local: True if it is on this machine, so that the hub is not tried.

    Raises:
        ValueError: if the block fails.
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
