"""8-bit graphs: what becomes of the weights, where ranges come from, and what is said about quality and speed."""

import converted
import exported
import numpy as np
import pytest
import torch
from torch import nn

from nas import machine
from nas.deploy import drawer as drawing
from nas.deploy import export, graphs
from nas.deploy.contents import export_folder
from nas.deploy.int8 import quality
from nas.deploy.speed import latency
from nas.errors import InputError
from nas.trial.bench import Bench

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from nas.deploy.exporters import coreml  # noqa: E402
from nas.deploy.exporters import onnx as format_onnx  # noqa: E402
from nas.deploy.int8 import export as int8  # noqa: E402
from nas.deploy.int8 import methods  # noqa: E402
from nas.deploy.int8 import onnx as onnx_int8  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def converted_once(tmp_path_factory):
    with converted.shared(tmp_path_factory):
        yield


class Network(nn.Module):
    """A first convolution that stays as it is, and one that becomes integers."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, latents):
        return self.inner(self.conv_in(latents))


class Single(nn.Module):
    """x -> x, as a convolution that may become integers."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(2, 2, 1, bias=False)
        self.inner.weight.data = torch.eye(2)[:, :, None, None]

    def forward(self, latents):
        return self.inner(latents)


def written(module, tmp_path, size=(4, 6, 6)):
    graph = graphs.decoder(module, size)
    return graph, format_onnx.write(graph, tmp_path / "plain")


def weights(path):
    found = {value.name: torch.tensor(onnx.numpy_helper.to_array(value)) for value in onnx.load(path).graph.initializer}
    return found, [value for value in found.values() if value.dtype == torch.int8 and value.dim() == 4]


def test_weights_are_the_nearest_of_129_levels_in_each_channel(tmp_path):
    graph, path = written(exported.randomised(Network()), tmp_path)
    calibration = [graph.random_inputs(2, seed) for seed in range(4)]
    small = onnx_int8.write(path, tmp_path / "small.onnx", "static", calibration)
    found, integers = weights(small)
    inner = graph.module.inner.weight.detach()
    (levels,) = integers  # the other convolution is among the blocks that are kept
    scale = inner.abs().amax((1, 2, 3), keepdim=True) / 64
    assert torch.equal(levels.float(), torch.round(inner / scale).clamp(-64, 64))
    assert any(torch.equal(value, graph.module.conv_in.weight) for value in found.values())
    inputs = calibration[1]  # within the ranges
    error = graphs.relative_error(format_onnx.load(small)(inputs), graph.run(inputs))
    assert 1e-5 < error < 0.05


def test_static_ranges_are_those_of_the_calibration(tmp_path):
    graph, path = written(Single(), tmp_path, (2, 4, 4))
    calibration = [(torch.linspace(-1, 1, 32).view(1, 2, 4, 4),)]
    network = format_onnx.load(onnx_int8.write(path, tmp_path / "small.onnx", "static", calibration))
    (inside,) = network((calibration[0][0],))
    assert torch.allclose(inside, calibration[0][0], atol=1.01 * 2 / 255)
    (beyond,) = network((torch.full((1, 2, 4, 4), 5.0),))
    assert torch.allclose(beyond, torch.ones(()), atol=2 * 2 / 255)


def test_dynamic_ranges_are_those_of_the_call(tmp_path):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)
            self.inner.weight.data = torch.eye(4)

        def forward(self, latents):
            return self.inner(latents)

    graph, path = written(Linear(), tmp_path, (2, 4, 4))
    network = format_onnx.load(onnx_int8.write(path, tmp_path / "small.onnx", "dynamic"))
    for reach in (1.0, 100.0):
        inputs = torch.linspace(-reach, reach, 32).view(1, 2, 4, 4)
        assert torch.allclose(network((inputs,))[0], inputs, atol=1.01 * 2 * reach / 255)


def saturated(unsigned, signed):
    """Rows (N, K) of unsigned bytes times columns (K, M) of signed ones, as x86 computes it without VNNI: products are added in
    pairs, and a pair's sum is cut off to 16 bits."""
    products = unsigned.astype(np.int32)[:, :, None] * signed.astype(np.int32)[None]
    pairs = products.reshape(len(unsigned), -1, 2, signed.shape[1]).sum(2)
    return pairs.clip(-(2**15), 2**15 - 1).sum(1)


def integers(path):
    """Every matrix of signed bytes in a file that unsigned ones are multiplied with, as (K, M)."""
    graph = onnx.load(path).graph
    held = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    found = [array for array in held.values() if array.dtype == np.int8 and array.ndim > 1]
    return [array.reshape(len(array), -1).T if array.ndim == 4 else array for array in found]


def test_full_range_weights_would_be_cut_off():
    bytes_ = np.full((1, 4), 255, np.uint8)
    assert saturated(bytes_, np.full((4, 1), 127, np.int8)).item() == 2 * 32767 < 4 * 255 * 127
    assert saturated(bytes_, np.full((4, 1), 64, np.int8)).item() == 4 * 255 * 64


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_no_product_of_bytes_is_cut_off_on_any_processor(tmp_path, method):
    graph, path = written(exported.randomised(nn.Sequential(nn.Linear(6, 64), nn.Linear(64, 6))), tmp_path)
    small = onnx_int8.write(path, tmp_path / "small.onnx", method, [graph.random_inputs(2)])
    (first, second) = integers(small)
    assert {first.shape, second.shape} == {(6, 64), (64, 6)} and max(abs(first.min()), first.max()) == 64
    drawn = np.random.default_rng(0).integers(0, 256, (8, 64), dtype=np.uint8)
    for matrix in (first, second):
        worst = np.where(matrix.T > 0, 255, 0).astype(np.uint8)  # for each column
        for rows in (worst, 255 - worst, drawn[:, : len(matrix)]):
            assert np.array_equal(saturated(rows, matrix), rows.astype(np.int64) @ matrix)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A graph, and what it is converted to."""
    module = exported.randomised(nn.Sequential(nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 4, 3, padding=1)))
    graph, made, convert = graphs.decoder(module, (4, 6, 6)), [], format_onnx._converted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(format_onnx, "_converted", lambda *given: made.append(convert(*given)) or made[0])
        format_onnx.write.__wrapped__(graph, tmp_path_factory.mktemp("wide") / "plain")
    return graph, made[0]


@pytest.fixture
def write_wide(wide, monkeypatch):
    """Writes that graph into a folder."""
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    monkeypatch.setattr(format_onnx, "_converted", lambda *_: wide[1])
    monkeypatch.setattr(format_onnx, "_clean", lambda model: None)
    return lambda folder: format_onnx.write.__wrapped__(wide[0], folder / "plain")


@pytest.mark.parametrize(
    ("method", "largest"),  # bytes in one file: too few for either network, or for float32 alone
    [("dynamic", 0), ("static", 10_000)],
)
def test_weights_beside_the_file_give_the_same_network(tmp_path, monkeypatch, wide, write_wide, method, largest):
    calibration = [wide[0].random_inputs(2, seed) for seed in range(2)]
    whole, one_file = write_wide(tmp_path), format_onnx.LARGEST
    expected = format_onnx.load(onnx_int8.write(whole, tmp_path / "small.onnx", method, calibration))
    monkeypatch.setattr(format_onnx, "LARGEST", largest)
    apart = write_wide(tmp_path / "large")
    assert format_onnx.weights_beside(apart)
    small = onnx_int8.write(apart, apart.with_name("small.onnx"), method, calibration)
    assert format_onnx.weights_beside(small) == (not largest)
    before = {file.name: file.stat().st_size for file in apart.parent.iterdir()}
    write_wide(apart.parent)
    onnx_int8.write(apart, small, method, calibration)
    assert {file.name: file.stat().st_size for file in apart.parent.iterdir()} == before
    (inputs,) = calibration[:1]
    assert torch.equal(format_onnx.load(small)(inputs)[0], expected(inputs)[0])
    monkeypatch.setattr(format_onnx, "LARGEST", one_file)
    again = write_wide(apart.parent)
    assert again == apart and not format_onnx.weights_beside(again)


def test_what_cannot_be_quantised_is_an_input_error(tmp_path):
    _, path = written(Single(), tmp_path, (2, 4, 4))
    with pytest.raises(InputError, match=r"quantise: .*plain\.onnx: onnxruntime cannot quantise it"):
        onnx_int8.write(path, tmp_path / "small.onnx", "static", [])
    assert not (tmp_path / "small.onnx").exists()


# --- an export with int8 ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "small" / "2026"
    return exported.run_directory(path, overrides=["metrics=[clip_score]"])


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    return export.export(run, "trial:0", tmp_path_factory.mktemp("model"), ["safetensors", "onnx"], quantised=True)


@pytest.fixture(scope="module")
def bench(run):
    return Bench(export.pick_trial(run, "trial:0").study, run.cache)


def test_an_export_says_what_int8_costs(model, bench):
    held = drawing.read(model)["formats"]["onnx"]["int8"]
    for name, entry in held["networks"].items():
        plain = model / "onnx" / f"{name}.onnx"
        assert entry["bytes"] == (model / entry["file"]).stat().st_size
        assert entry["size_ratio"] == pytest.approx(entry["bytes"] / plain.stat().st_size)
        assert entry["speed_ratio"] > 0 and 0 < entry["max_relative_error"] < 0.5
    drawer = drawing.load(model, "onnxruntime", "int8")
    found = quality.scores(bench, drawer)
    assert found == held["quality"]["scores"]["int8"] != held["quality"]["scores"]["fp32"]
    card = (model / "README.md").read_text()
    assert f"int8 was measured on {machine.device()[0]}" in card and "processors without VNNI" in card
    assert "all networks on onnxruntime" in card and "int8 denoiser (static)" in card and "in CPU time" in card
    assert drawer.draw(["sun"], seed=1).shape == (1, 3, 64, 64)


def test_int8_draws_without_nas_and_says_what_it_is(model):
    sessions = [ort.InferenceSession(model / "onnx" / f"denoiser{ending}.onnx") for ending in ("", ".int8")]
    about = [(session.get_modelmeta().graph_name, session.get_modelmeta().custom_metadata_map) for session in sessions]
    assert about[0] == about[1] and about[0][0] == "denoiser" and about[0][1]["prediction"] == "v"
    draw = exported.draw_py(model)["draw"]
    expected = drawing.load(model, "onnxruntime", "int8").draw(["sun", "heart"], seed=1).permute(0, 2, 3, 1)
    found = torch.from_numpy(draw(["sun", "heart"], seed=1, networks="onnx int8"))
    plain = torch.from_numpy(draw(["sun", "heart"], seed=1))
    assert (found - expected).abs().mean() < 2e-3 < (found - plain).abs().mean()


def test_an_exports_weights_leave_room_for_every_product(model):
    """Of two bytes up to 255 with two weights, in the whole text encoder, denoiser and decoder."""
    for entry in drawing.read(model)["formats"]["onnx"]["int8"]["networks"].values():
        matrices = integers(model / entry["file"])
        largest = max(int(np.abs(matrix.astype(int)).max()) for matrix in matrices)
        assert largest == onnx_int8.LARGEST_WEIGHT and 2 * 255 * largest <= np.iinfo(np.int16).max


def test_auto_is_the_first_runtime_that_has_the_precision(model):
    assert list(drawing.runtimes(model)) == ["pytorch", "onnxruntime"]
    found = drawing.load(model, precision="int8").draw(["sun"], seed=1)
    assert torch.equal(found, drawing.load(model, "onnxruntime", "int8").draw(["sun"], seed=1))
    assert torch.equal(
        drawing.load(model, precision="fp32").draw(["sun"], seed=1),
        drawing.load(model, "pytorch").draw(["sun"], seed=1),
    )
    with pytest.raises(InputError, match="nothing in it is in 'int16'; did you mean 'int8'.*fp32, int8"):
        drawing.load(model, precision="int16")


def test_errors_of_int8_are_against_pytorch(model, bench):
    held = drawing.read(model)["formats"]["onnx"]["int8"]
    plain, small = drawing.load(model, "pytorch"), drawing.load(model, "onnxruntime", "int8")
    assert export.compare_pictures(plain, small, exported.CAPTIONS) == held["pictures"]
    seen = methods.recorded(plain, quality.calibration_captions(bench), seed=1)
    for name, calls in seen.items():
        pairs = [zip(small.networks[name](call), plain.networks[name](call), strict=True) for call in calls]
        worst = max(float((a - b).abs().max() / b.abs().max()) for call in pairs for a, b in call)
        assert held["networks"][name]["max_relative_error"] == pytest.approx(worst, rel=1e-6)


def test_int8_that_gives_no_numbers_is_refused():
    graph = graphs.decoder(Single(), (2, 4, 4))
    calls = [graph.random_inputs(2, seed) for seed in range(3)]

    def broken(inputs):
        return tuple(value * (float("nan") if inputs is calls[1] else 1) for value in graph.run(inputs))

    assert int8._error(graph, broken, calls[:1]) == 0
    with pytest.raises(InputError, match="quantise int8: decoder gives numbers that are not finite"):
        int8._error(graph, broken, calls)


def test_scores_are_those_the_study_gives(model, bench):
    """On PyTorch: the same captions, noise and metrics as a trial's own scoring."""
    drawer = drawing.load(model, "pytorch")
    expected = bench.score(drawing.load_network(model), drawer.schedule).metrics
    found = quality.scores(bench, drawer)
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)


def test_latency_is_that_of_the_files_an_export_has(model, monkeypatch):
    subject = latency.subject(str(model), 512, None)
    assert set(subject.files) == {"onnxruntime"} and set(subject.files["onnxruntime"]) == set(graphs.NAMES)
    monkeypatch.setattr(format_onnx, "write", None)
    assert latency.measure(subject, "onnxruntime", 1, 1).denoiser_ms > 0


def test_calibration_inputs_are_what_drawing_asks_for(model):
    drawer = drawing.load(model, "pytorch")
    captions = [f"heart {i}" for i in range(20)]
    seen = methods.recorded(drawer, captions, seed=1)
    steps = drawer.plan.steps
    assert {name: len(calls) for name, calls in seen.items()} == {
        "text_encoder": 2 * 2,
        "denoiser": 2 * steps,
        "decoder": 2,
    }
    latents, time, tokens, _ = seen["denoiser"][1]  # the end of a guided batch has the captions
    assert latents.shape == (methods.BATCH, 8, 8, 8) and time.unique().numel() == 1
    expected = drawer.encode(captions).tokens[-methods.BATCH :]
    assert torch.allclose(tokens, expected, atol=1e-5)
    assert torch.allclose(seen["denoiser"][0][2], drawer.encode([""]).tokens.expand(methods.BATCH, -1, -1), atol=1e-5)


def test_calibration_captions_are_spread_over_the_split(bench):
    found = quality.calibration_captions(bench)
    captions = list(bench.train_data.captions[:-1])
    places = [captions.index(caption) for caption in found]
    assert len(found) == len(set(found)) == quality.CALIBRATION and "" not in found
    assert places == sorted(places) and places[-1] - places[0] > len(captions) / 2


def test_the_speed_ratio_is_the_median_of_pairs(monkeypatch):
    clock, rows = [0.0], []
    monkeypatch.setattr(quality.time, "process_time", lambda: clock[0])

    def network(seconds):
        def run(inputs):
            rows.append(len(inputs[0]))
            clock[0] += next(seconds)

        return run

    slow = iter([9.0, 9.0] + [6.0] * quality.REPEATS)
    fast = iter([1.0, 1.0] + [2.0] * (quality.REPEATS // 2 + 1) + [600.0] * quality.REPEATS)
    assert quality.speed_ratio(network(slow), network(fast), (torch.zeros(5, 2),)) == 3.0
    assert set(rows) == {1}


def test_what_is_told_has_the_change_in_percent():
    entries = {"denoiser": {"method": "static", "size_ratio": 0.271, "speed_ratio": 1.5}}
    scored = {"fp32": {"fid": 200.0, "zero": 0.0}, "int8": {"fid": 206.0, "zero": 1.0}}
    lines = quality.told(scored, entries, "onnxruntime", "a processor, 2 cores")
    assert lines[0].startswith("int8 denoiser (static): 0.27 of the size, 1.50 times as fast in CPU time")
    assert "200 in fp32, 206 in int8 (+3.0%)" in lines[1] and "%" not in lines[2]
    assert lines[3] == "int8 was measured on a processor, 2 cores"


@pytest.mark.parametrize(
    ("chosen", "precisions", "words"),
    [
        ({"coreml": coreml}, ["fp32"], "format coreml has no int8; add the format executorch or onnx"),
        ({}, ["fp32"], "no format that holds graphs; add the format executorch or onnx"),
        ({"onnx": format_onnx}, ["fp16"], "it is made from fp32 and compared with it; add the precision fp32"),
    ],
)
def test_int8_of_what_has_none(chosen, precisions, words):
    with pytest.raises(InputError, match=f"^quantise int8: {words}"):
        int8.check(chosen, precisions)


def test_what_has_no_int8_is_said_before_anything_is_written(run, tmp_path):
    with pytest.raises(InputError, match="no format that holds graphs"):
        export.export(run, "trial:0", tmp_path / "m", ["safetensors"], quantised=True)
    assert not (tmp_path / "m").exists()


def test_a_format_without_int8_says_so_beside_one_that_has_it(model, bench):
    source = drawing.model(drawing.load_network(model), export_folder.pipeline(model), model)
    manifest = {"formats": {"coreml": {}}}
    int8.add(manifest, source, {"coreml": coreml}, model, bench, [], print)
    assert manifest == {"formats": {"coreml": {}}, "notes": ["coreml has no int8 here; it holds fp16, fp32"]}
