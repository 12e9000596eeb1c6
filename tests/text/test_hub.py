"""The hub where there is none: asked once, and never made to wait for."""

import socket
import time

import pytest

from spectrolib.text import hub
from spectrolib.text.corpus import hub_documents

constants = pytest.importorskip("huggingface_hub").constants


@pytest.fixture
def nowhere(monkeypatch):
    """A hub at a port on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub._answers.cache_clear()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_hub_that_is_away_is_named_and_not_asked(nowhere):
    with hub.hub_in_reach() as away:
        assert away == "the hub (127.0.0.1) can't be reached"
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked(nowhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with hub.hub_in_reach() as away:
            assert away == "" and not constants.HF_HUB_OFFLINE


def test_behind_a_proxy_nothing_is_concluded(nowhere, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    with hub.hub_in_reach() as away:
        assert away == ""


def test_a_single_word_is_refused_at_once(nowhere):
    from spectrolib.model.loading import load_model

    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"'tipo': no such folder is here, and the hub \(.*\) can't be reached; "):
        load_model("tipo")
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match=r"data set 'tipo', split 'train': no such folder is here, and the hub \(.*\)"):
        hub_documents("tipo")
    assert time.monotonic() - begin < 20
