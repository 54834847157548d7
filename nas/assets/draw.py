"""Draws with the networks of this folder, without nas: python draw.py "a caption" "another" --seed 1 --out drawn.png

It needs numpy, Pillow and the networks' runtime. draw.json tells what goes in and out of them, the noise and the plan.
"""

import argparse
import html
import json
import re
import unicodedata
from hashlib import blake2b
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "draw.json").read_text(encoding="utf-8"))
DETERMINISTIC = ("ddim", "dpm++", "heun")  # solvers that add no noise of their own


def tokenise(captions):
    """Captions as the text encoder takes them: its inputs in order, each (B, length)."""
    path = HERE / ABOUT["tokenizer"]["file"]
    if ABOUT["tokenizer"]["reader"] == "tokenizers":
        from tokenizers import Tokenizer

        read = Tokenizer.from_file(str(path)).encode_batch(list(captions))
        rows = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
    else:
        told = json.loads(path.read_text(encoding="utf-8"))
        read = clip_reader(told) if told["model"]["type"] == "BPE" else word_reader(told)
        rows = {"input_ids": [read(caption) for caption in captions]}
    return [np.array(rows[given["name"]], np.int64) for given in ABOUT["tensors"]["text_encoder"]["inputs"]]


def clip_reader(told):
    """From a caption to CLIP's numbers: the start, the byte pairs of its words, the end, and zeros up to the length."""
    vocabulary, length = told["model"]["vocab"], told["truncation"]["max_length"]
    start, end = (told["post_processor"][place][1] for place in ("cls", "sep"))
    rank = {tuple(pair): number for number, pair in enumerate(told["model"]["merges"])}
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(sorted({*range(256)} - {*plain}))}

    def read(caption):
        text = html.unescape(html.unescape(unicodedata.normalize("NFC", caption))).lower()
        text = re.sub("[\u02bc\u2018-\u201b]", "'", re.sub("[\u201c-\u201f]", '"', text))  # typographic quotes
        digits = "".join({"0"} | {sign for sign in text if unicodedata.category(sign)[0] == "N"})
        pieces = []
        for word in re.findall(rf"'(?:s|t|re|ve|m|ll|d)|[{digits}]|[^\W_{digits}]+|(?:_|[^\s\w])+", text):
            parts = [letters[byte] for byte in word.encode()]
            parts[-1] += "</w>"
            while found := [(rank[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in rank]:
                at = min(found)[1]
                parts[at : at + 2] = ["".join(parts[at : at + 2])]
            pieces += [vocabulary[part] for part in parts]
        numbers = [start, *pieces[: length - 2], end]
        return numbers + [0] * (length - len(numbers))

    return read


def word_reader(told):
    """From a caption to the numbers of its words, and zeros up to the length. A word without one ends the program."""
    vocabulary, length = told["model"]["vocab"], told["truncation"]["max_length"]

    def read(caption):
        words = re.findall(r"\w+", caption.lower())
        for word in words:
            if word not in vocabulary:
                raise SystemExit(f"{caption!r}: {word!r} is none of the words of tokenizer.json")
        numbers = [vocabulary[word] for word in words[:length]]
        return numbers + [0] * (length - len(numbers))

    return read


def load(name, files):
    """A network as a function: its inputs in order -> its outputs in order, all with the batch in front."""
    path = HERE / files[name]
    if path.suffix == ".pte":
        return load_executorch(path)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if ".fp16" in path.name:  # onnxruntime 1.31.1 dies in what it does to these beyond this level
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def load_executorch(path):
    """The same of a file that takes one picture at a time. ExecuTorch's Python is made of torch's tensors."""
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")

    def network(*inputs, kept=program):  # whose memory the method reads
        rows = [[torch.from_numpy(part[row : row + 1]) for part in inputs] for row in range(len(inputs[0]))]
        made = [[value.numpy().copy() for value in method.execute(row)] for row in rows]
        return [np.concatenate(parts) for parts in zip(*made, strict=True)]

    return network


def times_of(solver, steps, count):
    """The training times, of `count`, that the steps start from, the noisiest first."""
    spacing = ABOUT["sampling"].get("spacing", "trailing")
    if solver not in DETERMINISTIC:
        return [index * (count - 1) // steps for index in range(steps, 0, -1)]
    if spacing == "trailing":  # from the last time on
        return np.arange(count, 0, -count / steps).round()[:steps].astype(int) - 1
    if steps == 1:
        raise SystemExit(f"--steps 1: {spacing} times ask about pure noise as if it were time 0; expected 2 or more")
    if spacing == "leading":
        return [index * (count // steps) for index in reversed(range(steps))]
    return np.linspace(1, count, steps).round()[::-1].astype(int) - 1


def sample(predict, noise, solver, steps):
    """Latents from noise (B, C, H, W); `predict(latents, time)` is the network's guided prediction."""
    kept = np.array(ABOUT["schedule"]["alphas_cumprod"])
    signal, spread = np.sqrt(kept), np.sqrt(1 - kept)

    def clean_and_noise(x, time):
        a, s, prediction = signal[time], spread[time], predict(x, time)
        clean = a * x - s * prediction if ABOUT["schedule"]["prediction"] == "v" else (x - s * prediction) / a
        return clean, (x - a * clean) / s

    times = times_of(solver, steps, len(kept))
    seeds = (np.frombuffer(blake2b(row.tobytes(), digest_size=16).digest(), "<u4") for row in noise)
    streams = [np.random.RandomState(seed) for seed in seeds]
    x, before = noise, None
    for time, after in zip(times, [*times[1:], None], strict=True):
        clean, left = clean_and_noise(x, time)
        if after is None:
            return clean
        towards = clean
        if solver == "dpm++" and before:  # the correction of second order
            then, now, next_ = (np.log(signal[one] / spread[one]) for one in (before[0], time, after))
            towards = clean + (next_ - now) / (2 * (now - then)) * (clean - before[1])
            left = (x - signal[time] * towards) / spread[time]
        if solver not in DETERMINISTIC:
            left = np.stack([stream.standard_normal(noise.shape[1:]) for stream in streams]).astype(np.float32)
        stepped, before = signal[after] * towards + spread[after] * left, (time, clean)
        if solver == "heun":  # the trapezoidal rule along the angle whose cosine is the signal
            clean_then, left_then = clean_and_noise(stepped, after)
            slopes = signal[time] * left - spread[time] * clean + signal[after] * left_then - spread[after] * clean_then
            stepped = x + np.tan((np.arccos(signal[after]) - np.arccos(signal[time])) / 2) * slopes
        x = stepped


def keeping(files, steps):
    """The denoiser at each step of a plan that keeps what parts of it put out: networks that hand that on."""
    if steps != ABOUT["sampling"]["steps"]:
        raise SystemExit(
            f"--steps {steps}: the networks keep what they put out by a plan of {ABOUT['sampling']['steps']}"
        )
    networks, held = {step["network"]: load(step["network"], files) for step in ABOUT["steps"]}, {}
    for step in ABOUT["steps"]:

        def denoiser(*inputs, step=step):
            prediction, *kept = networks[step["network"]](*inputs, *(held[name] for name in step["taken"]))
            held.update(zip(step["kept"], kept, strict=True))
            return [prediction]

        yield denoiser


def draw(captions, seed=0, steps=None, guidance=None, networks=None):
    """Pictures (B, H, W, 3) of numbers in [-1, 1]. What is not given is as in draw.json."""
    plan, files = ABOUT["sampling"], ABOUT["networks"][networks or next(iter(ABOUT["networks"]))]
    weight = plan["guidance"] if guidance is None else guidance
    encoder, denoiser, decoder = (load(name, files) for name in ABOUT["tensors"])
    branches = 1 if weight == 1 else 2  # without the caption, and with it
    text = encoder(*tokenise(captions))
    if branches == 2:
        null = encoder(*tokenise([ABOUT["unconditional"]["caption"]]))
        text = [np.concatenate([one.repeat(len(captions), 0), rows]) for one, rows in zip(null, text, strict=True)]
    seeds = [[row, *divmod(seed % 2**64, 2**32)] for row in range(len(captions))]
    noise = np.stack([np.random.RandomState(words).standard_normal(ABOUT["latents"]) for words in seeds])

    low, high = plan.get("guidance_interval", (0, np.inf))  # the times that are guided
    turns = keeping(files, steps or plan["steps"]) if "steps" in ABOUT else repeat(denoiser)

    def predict(latents, time):
        asked = branches if low <= time <= high else 1
        doubled = np.concatenate([latents] * asked).astype(np.float32)
        rows = [one[-len(doubled) :] for one in text]  # those with a caption come last
        (prediction,) = next(turns)(doubled, np.full(len(doubled), time, np.int64), *rows)
        without, caption = prediction[: -len(latents)], prediction[-len(latents) :]
        return caption if asked == 1 else without + weight * (caption - without)

    latents = sample(predict, noise.astype(np.float32), plan["solver"], steps or plan["steps"])
    return decoder(latents.astype(np.float32))[0].clip(-1, 1).transpose(0, 2, 3, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", nargs="+")
    parser.add_argument("--networks", choices=list(ABOUT["networks"]))
    for option, kind in (("--seed", int), ("--steps", int), ("--guidance", float), ("--out", Path)):
        parser.add_argument(option, type=kind)
    asked = parser.parse_args()
    drawn = draw(asked.captions, asked.seed or 0, asked.steps, asked.guidance, asked.networks)
    Image.fromarray(np.uint8(np.hstack(drawn) * 127.5 + 128)).save(asked.out or "drawn.png")
