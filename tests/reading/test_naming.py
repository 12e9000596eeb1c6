"""Names by a language model: a server of our own on this machine that answers well, by chance, or badly."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cardmaking
import numpy as np
import pytest

from spectrolib.checks import intervals
from spectrolib.reading import cards, naming, rules
from spectrolib.reading.conditions import describe
from spectrolib.text.runningtext import running_text


@pytest.fixture
def server(monkeypatch):
    """A server whose ``reply`` a test sets: (system, user) -> (status, body); ``asked`` is what it was sent."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append((self.path, self.headers.get("Authorization"), sent))
            status, body = self.server.reply(*(message["content"] for message in sent["messages"]))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = []
    made.address = f"http://127.0.0.1:{made.server_port}/v1"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def completion(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture(scope="module")
def planted():
    """Members: ' the' after ' of'."""
    text = running_text(cardmaking.random_result())
    words = np.array([piece.decode() for piece in text.pieces])
    member = (words == " the") & (text.previous >= 0) & (words[text.previous] == " of")
    labels = np.where(member, 0, -1)
    return text, labels, cards.for_labels(describe(text), labels, np.ones((len(text), 1)), ["embed"])


def listed(question: str) -> dict[int, str]:
    return {int(n): json.loads(said) for n, said in re.findall(r"^(\d+)\. (\".*\")$", question, re.M)}


def knowing(system: str, question: str) -> tuple[int, bytes]:
    if system == naming.TASK:
        return completion('"the\n after of"')
    found = [number for number, said in listed(question).items() if " of<< the>>" in said]
    return completion(f"Those [not these] fit: {found}")


def by_token(system: str, question: str) -> tuple[int, bytes]:
    return completion(
        "the" if system == naming.TASK else str([n for n, said in listed(question).items() if "<< the>>" in said])
    )


def guessing(system: str, question: str) -> tuple[int, bytes]:
    half = np.random.default_rng(0).random(99) < 0.5
    return completion("?" if system == naming.TASK else str([n for n in listed(question) if half[n]]))


def test_a_model_that_knows_one_that_sees_the_token_and_one_that_guesses(server, planted):
    text, labels, made = planted
    endpoint, found = naming.Endpoint(server.address, "fake"), {}
    for reply in (knowing, by_token, guessing):
        server.reply = reply
        (card,) = naming.name_cards(made, text, labels, endpoint)
        found[reply] = card.name
    assert found[knowing].label == "the after of" and found[knowing].model == "fake"
    assert found[knowing].accuracy == intervals.wilson(1.0, 20)
    assert 0.6 <= found[by_token].accuracy.value <= 0.75  # half of the others, and some more, are the same token
    assert 0.2 <= found[guessing].accuracy.value <= 0.8
    assert made[0].name is None  # the cards themselves are left as they were


def test_what_is_asked(server, planted):
    """The name is made from one half of the documents and scored on the other."""
    text, labels, made = planted
    server.reply = knowing
    naming.name_cards(
        made, text, labels, naming.Endpoint(server.address + "/", "fake", key="secret"), shown=6, asked=10
    )
    (path, key, first), (_, _, second) = server.asked
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (first["model"], first["temperature"]) == ("fake", 0)
    _, fit = next(rules.deals(text, 0))

    def said(row):
        before, token, after = text.context(row)
        return f"{before}<<{token}>>{after}"

    shown = [json.loads(line) for line in first["messages"][1]["content"].split("\n")]
    asked = list(listed(second["messages"][1]["content"]).values())
    assert (len(shown), len(asked)) == (6, 10)
    assert set(shown) <= {said(row) for row in np.flatnonzero((labels == 0) & fit)}
    assert set(asked) <= {said(row) for row in np.flatnonzero(~fit)}
    assert len(set(asked) & {said(row) for row in np.flatnonzero((labels == 0) & ~fit)}) == 5


def test_a_cluster_in_one_document_gets_no_name(server, planted):
    text, _, made = planted
    server.reply = knowing
    labels = np.where(text.document == "document 3", 0, -1)
    assert naming.name_cards(made, text, labels, naming.Endpoint(server.address, "fake"))[0].name is None
    assert server.asked == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, b"bad\n\n key"), r"/chat/completions answers 401 Unauthorized: bad key$"),
        ((302, b""), r"answers 302 Found"),
        ((200, b"<html>"), r"cannot be asked: Expecting value"),
        ((200, b'{"choices": []}'), r"answers something else than a chat completion$"),
        ((200, b"[1]"), r"answers something else than a chat completion$"),
    ],
)
def test_bad_answers_are_one_line(server, reply, message):
    server.reply = lambda *_: reply
    with pytest.raises(ValueError, match=message) as caught:
        naming.Endpoint(server.address, "fake", key="secret").ask("task", "question")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert len(server.asked) == 1  # a redirection is not followed


def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ValueError, match=r"^http://127\.0\.0\.1:9/v1/chat/completions cannot be asked: "):
        naming.Endpoint("http://127.0.0.1:9/v1", "fake", timeout=5).ask("task", "question")


@pytest.mark.parametrize("address", ["", "localhost:8000", "file:///etc/hosts", "http://"])
def test_addresses_of_no_server(address):
    with pytest.raises(ValueError, match="starts with http:// or https://, got"):
        naming.Endpoint(address, "fake")


def test_a_model_has_to_be_named():
    with pytest.raises(ValueError, match="needs the name of a model"):
        naming.Endpoint("http://localhost", "")


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [("[1, 4]", [1, 4]), ("[2] or rather [3,\n5]", [3, 5]), ("none", []), ("[]", []), ("1, 2", [])],
)
def test_numbers(answer, numbers):
    assert naming._numbers(answer) == numbers
