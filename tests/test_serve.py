"""nas serve: what its page sends and gets, and what it refuses."""

import base64
import http.client
import io
import json
import threading

import chromium
import exported
import pytest
from PIL import Image

from nas import drawing, export, serve
from nas.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    run = exported.run_directory(tmp_path_factory.mktemp("runs") / "small" / "2026")
    return export.export(run, "trial:0", tmp_path_factory.mktemp("model") / "small", ["safetensors"])


@pytest.fixture(scope="module")
def port(model):
    made = serve.server(model, 0)
    assert made.server_address[0] == "127.0.0.1"
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made.server_port
    made.shutdown()
    thread.join()
    made.server_close()


def asked(port, method="POST", path="/draw", body=None, **headers):
    """(status, kind, content) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    content = body if isinstance(body, str | None) else json.dumps(body)
    connection.request(method, path, content, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    found = answer.read()
    connection.close()
    return answer.status, answer.headers.get_content_type(), found


def drawn(port, **given):
    status, kind, content = asked(port, body=given)
    assert kind == "application/json"
    return status, json.loads(content)


def test_a_picture_is_what_nas_sample_draws_with_times(port, model):
    status, found = drawn(port, caption="sun, noto", steps=3, guidance=2.0, seed=7)
    assert status == 200 and found["notes"] == [] and found["size"] == [64, 64]
    picture = Image.open(io.BytesIO(base64.b64decode(found["picture"].removeprefix("data:image/png;base64,"))))
    expected = drawing.load(model).draw(["sun, noto"], seed=7, steps=3, guidance=2.0)[0]
    assert picture.tobytes() == Image.open(io.BytesIO(base64.b64decode(serve.data_url(expected)[22:]))).tobytes()
    parts = found["parts"]
    assert {name: part["calls"] for name, part in parts.items()} == {"text_encoder": 2, "denoiser": 3, "decoder": 1}
    assert all(part["ms"] > 0 for part in parts.values())
    assert sum(part["ms"] for part in parts.values()) <= found["total_ms"]


def test_a_long_caption_is_cut_with_a_note_and_the_plan_is_the_exports(port):
    status, found = drawn(
        port, caption="a small red house beside a very wide blue sea under a large white cloud in oil"
    )
    assert status == 200 and "the first 20 are read" in found["notes"][0]
    assert found["parts"]["denoiser"]["calls"] == 2  # the study's two steps


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"caption": " "}, ["is empty"]),
        ({"caption": "sun", "steps": 0}, ["steps", "greater than or equal to 1", "0"]),
        ({"caption": "sun", "guidance": "much"}, ["guidance", "much"]),
        ({"caption": "sun", "seed": -1}, ["seed", "-1"]),
        ({"caption": "sun", "sead": 1}, ["sead"]),
        ({}, ["caption", "required"]),
        ("{", ["JSON"]),
    ],
)
def test_what_cannot_be_drawn_is_said(port, body, words):
    status, _, content = asked(port, body=body)
    assert status == 400 and all(word in json.loads(content)["error"] for word in words), content


def test_requests_from_elsewhere_are_refused(port):
    good = {"caption": "sun"}
    assert asked(port, body=good, Host="evil.example")[0] == 403
    assert asked(port, "GET", "/", Host=f"evil.example:{port}")[0] == 403
    assert asked(port, body="caption=sun", **{"Content-Type": "text/plain"})[0] == 400
    assert asked(port, body="x" * 70_000)[0] == 400
    assert asked(port, "GET", "/draw")[0] == asked(port, path="/else", body=good)[0] == 404
    assert asked(port, "GET", "/", Host=f"localhost:{port}")[0] == 200


def test_the_page_escapes_what_it_is_told(model, tmp_path):
    odd = tmp_path / "<b>odd"
    model.rename(odd)
    try:
        page = serve.page_of(odd, drawing.load(odd), "auto").decode()
    finally:
        odd.rename(model)
    assert "<b>odd" not in page and "&lt;b&gt;odd" in page and 'value="2"' in page


def test_a_port_that_is_taken(port, model):
    with pytest.raises(InputError, match=f"127.0.0.1:{port}: .*; choose another with --port"):
        serve.server(model, port)


@pytest.mark.skipif(chromium.PATH is None, reason="no Chromium")
def test_the_page_draws(port, tmp_path):
    with chromium.browser(tmp_path) as page:
        page.resize(1000, 800)
        page.open(f"http://127.0.0.1:{port}/", "document.forms.length")
        page.value("document.querySelector('[name=caption]').value = 'sun, noto'; document.forms[0].requestSubmit()")
        page.wait("!document.getElementById('answer').hidden")
        rows = page.value("[...document.querySelectorAll('#times tr')].map(row => row.cells[0].textContent)")
        assert rows == ["text encoder", "denoiser", "decoder", "solver and the rest", "overall"]
        assert page.value("document.getElementById('picture').naturalWidth") == 64
        page.value("document.querySelector('[name=caption]').value = ' '; document.forms[0].requestSubmit()")
        page.wait("document.getElementById('error').textContent.includes('empty')")
        assert page.value("document.querySelectorAll('#earlier img').length") == 1
