"""nas serve: what its page sends and gets, and what it refuses."""

import base64
import io
import json
import re

import chromium
import exported
import pytest
import served
import yaml
from PIL import Image

from nas import loopback
from nas.deploy import drawer as drawing
from nas.deploy import export, exporters, serve
from nas.deploy.exporters import onnx
from nas.deploy.step_graphs import Step
from nas.diffusion.plan import Plan
from nas.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An export for PyTorch whose manifest has graphs for onnxruntime as well: what their files hold, tests say."""
    run = exported.run_directory(tmp_path_factory.mktemp("runs") / "small" / "2026")
    folder = export.export(run, "trial:0", tmp_path_factory.mktemp("model") / "small", ["safetensors"])
    manifest = yaml.safe_load((folder / "export.yaml").read_text())
    files = {"networks": {part: {"file": f"onnx/{part}.onnx"} for part in serve.PARTS}}
    manifest |= {"latents": [8, 8, 8], "formats": manifest["formats"] | {"onnx": {"fp32": files, "fp16": files}}}
    (folder / "export.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def port(model):
    made = serve.server(model, 0)
    assert made.effective_host == "127.0.0.1"
    with served.running(made) as found:
        yield found


def asked(port, method="POST", path="/draw", body=None, **headers):
    """(status, kind, content) of one request."""
    content = body if isinstance(body, str | bytes | None) else json.dumps(body)
    return served.asked(port, method, path, content, **{"Content-Type": "application/json", **headers})


def drawn(port, **given):
    status, kind, content = asked(port, body=given)
    assert kind == "application/json"
    return status, json.loads(content)


def test_a_picture_is_what_nas_sample_draws_with_times(port, model):
    status, found = drawn(port, caption="sun, noto", steps=3, guidance=2.0, seed=7)
    assert status == 200 and found["notes"] == [] and found["size"] == [64, 64]
    expected = drawing.load(model).draw(["sun, noto"], seed=7, steps=3, guidance=2.0)[0]
    assert found["picture"] == serve.data_url(expected)
    picture = Image.open(io.BytesIO(base64.b64decode(found["picture"].removeprefix("data:image/png;base64,"))))
    assert picture.size == (64, 64) and picture.mode == "RGB"
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
        ({"caption": "sun", "steps": 10**9}, ["steps", "less than or equal to 1000", "1000000000"]),
        ({"caption": "sun", "guidance": "much"}, ["guidance", "much"]),
        ({"caption": "sun", "guidance": 1e30}, ["guidance", "less than or equal to 1000", "1e+30"]),
        ('{"caption": "sun", "guidance": NaN}', ["guidance", "finite"]),
        ('{"caption": "sun", "guidance": 1e999}', ["guidance"]),
        ({"caption": "sun", "seed": -1}, ["seed", "-1"]),
        ({"caption": "sun", "seed": 10**400}, ["seed"]),
        ({"caption": "sun", "sead": 1}, ["sead"]),
        ({"caption": "sun " * 501}, ["caption", "at most 2000"]),
        ({"caption": "sun", "runtime": "onnxruntme"}, ["onnxruntme", "did you mean 'onnxruntime'"]),
        ({"caption": "sun", "runtime": "onnxruntime", "precision": "int8"}, ["onnx has no 'int8'", "fp32"]),
        ({}, ["caption", "required"]),
        ("{", ["JSON"]),
        ("[" * 60_000, ["JSON"]),
        (b"\xff\xfe", ["JSON"]),
        ('{"caption": "\\ud800"}', ["JSON"]),
    ],
)
def test_what_cannot_be_drawn_is_said(port, body, words):
    status, _, content = asked(port, body=body)
    assert status == 400 and all(word in json.loads(content)["error"] for word in words), content


SECRET = "do not repeat this, for it may be long or none of a log's business"


@pytest.mark.parametrize(
    "body",
    [
        "{" + SECRET,
        f'"{SECRET}"',
        {"captoin": SECRET},
        {"caption": [SECRET]},
        {"caption": "sun", "steps": SECRET},
        {"caption": "sun", SECRET: 1},
        {"caption": "sun", "runtime": SECRET},
    ],
)
def test_what_cannot_be_drawn_is_not_repeated(port, body):
    status, _, content = asked(port, body=body)
    assert status == 400 and SECRET not in content.decode() and len(content) < 200


def test_every_runtime_of_the_export_can_be_asked_for(model, monkeypatch):
    """onnxruntime's networks stand in: PyTorch's, upside down in the end."""
    monkeypatch.setattr(exporters, "missing", lambda module: [])
    own = drawing.load(model).networks
    theirs = {**own, "decoder": lambda inputs: (own["decoder"](inputs)[0].flip(2),)}
    monkeypatch.setattr(onnx, "load", lambda path, threads: theirs[path.stem])
    plan = {"steps": 2, "guidance": 2.0, "seed": 3}
    expected = drawing.load(model).draw(["sun"], **plan)[0]
    artist = serve.Artist(model)
    page = serve.page_of(model, artist).decode()
    offered = re.findall(r'<option value="(\w+) (\w+)"( selected)?>', page)
    assert offered == [("pytorch", "fp32", " selected"), ("onnxruntime", "fp32", ""), ("onnxruntime", "fp16", "")]
    for runtime, precision, _ in offered:
        asked = serve.Asked(caption="sun", runtime=runtime, precision=precision, **plan)
        drawn = expected if runtime == "pytorch" else expected.flip(1)
        assert artist.draw(asked)["picture"] == serve.data_url(drawn)
    chosen = serve.Artist(model, "auto", "fp16")  # as --precision fp16 does
    assert '<option value="onnxruntime fp16" selected>' in serve.page_of(model, chosen).decode()
    assert chosen.draw(serve.Asked(caption="sun", **plan))["picture"] == serve.data_url(expected.flip(1))


@pytest.mark.parametrize(("system", "offered"), [("Linux", False), ("Darwin", True)])
def test_a_runtime_of_another_system_is_not_offered(model, monkeypatch, system, offered):
    monkeypatch.setattr(exporters, "missing", lambda module: [])
    monkeypatch.setattr(drawing, "read", lambda folder: {"formats": {"coreml": {"fp16": {}}}})
    monkeypatch.setattr(exporters.platform, "system", lambda: system)
    assert drawing.choices(model) == [("coreml", "fp16")] * offered


def test_graphs_that_take_turns_count_as_the_denoiser(model):
    """Those of a plan that keeps units, on a runtime of graphs."""
    drawer = drawing.load(model)
    turns = {f"denoiser_{number}": drawer.networks["denoiser"] for number in range(2)}
    plan = Plan(steps=2, cache={"name": "fora", "every": 2})
    kept = serve.replace(drawer, networks={**drawer.networks, **turns}, plan=plan, steps=[*map(Step, turns)])
    timed, spent = serve.watched(kept, lambda: False)
    timed.draw(["sun"], 0)
    assert {name: len(calls) for name, calls in spent.items()} == {"text_encoder": 2, "denoiser": 2, "decoder": 1}


def test_weights_that_give_no_numbers_are_said(model):
    drawer = drawing.load(model)
    broken = serve.replace(drawer, networks={**drawer.networks, "denoiser": lambda inputs: (inputs[0] * float("nan"),)})
    with pytest.raises(InputError, match="guidance 2 in 3 steps the picture is not finite numbers"):
        broken.draw(["sun"], 0, steps=3, guidance=2.0)


def test_requests_from_elsewhere_are_refused(port):
    good = {"caption": "sun"}
    assert asked(port, body=good, Host="evil.example")[0] == 403
    assert asked(port, "GET", "/", Host=f"evil.example:{port}")[0] == 403
    assert asked(port, body="caption=sun", **{"Content-Type": "text/plain"})[0] == 400
    assert asked(port, "OPTIONS", Origin="http://evil.example")[0] == 404
    assert asked(port, "GET", "/draw")[0] == asked(port, path="/else", body=good)[0] == 404
    assert asked(port, "GET", "/", Host=f"localhost:{port}")[0] == 200


def test_a_draw_whose_client_left_is_not_drawn_to_its_end(model):
    artist, looks = serve.Artist(model), []

    def left():
        looks.append(None)
        return len(looks) > 4  # the caption, the empty one, and two steps

    asking = serve.Asked(caption="sun", steps=9, guidance=2.0)
    with pytest.raises(serve.Left):
        artist.draw(asking, left)
    assert len(looks) == 5
    drawn = []
    with pytest.raises(serve.Left):  # before its turn came
        artist.draw(asking, lambda: drawn.append(None) or True)
    assert len(drawn) == 1
    assert artist.draw(asking)["parts"]["denoiser"]["calls"] == 9


def test_only_so_many_draws_wait(model):
    artist = serve.Artist(model)
    for _ in range(serve.WAITING):
        assert artist._places.acquire(blocking=False)
    made = loopback.server("serve", serve.Site(b"page", artist.draw), 0, serve.WAITING + serve.SPARE)
    with served.running(made) as port:
        status, found = drawn(port, caption="sun")
        assert status == 503 and found == {"error": "8 draws are under way or waiting; ask again when some are done"}
        assert asked(port, "GET", "/") == (200, "text/html", b"page")
        artist._places.release()
        assert drawn(port, caption="sun")[0] == 200


def test_a_failure_within_is_a_line_for_the_client(caplog):
    def breaks(*_):
        raise RuntimeError("secret of the house")

    made = loopback.server("serve", serve.Site(b"page", breaks), 0, 1)
    with served.running(made) as port:
        status, kind, content = asked(port, body={"caption": "sun"})
    assert (status, kind) == (500, "text/plain") and b"secret" not in content
    assert "secret of the house" in caplog.text  # and the whole story for whoever runs it


def test_the_page_escapes_what_it_is_told(model, tmp_path):
    odd = tmp_path / "<b>odd"
    model.rename(odd)
    try:
        page = serve.page_of(odd, serve.Artist(odd)).decode()
    finally:
        odd.rename(model)
    assert "<b>odd" not in page and "&lt;b&gt;odd" in page and 'value="2"' in page
    assert f'placeholder="{drawing.examples(model)[0]}"' in page


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
