"""How large is the report of a long search, how soon can it be used, and does it follow the mouse?

    python benchmarks/report_size.py                           # 5, 64 and 500 trials
    python benchmarks/report_size.py --trials 500 --keep DIR   # and leave the page there

A made-up run as a search of `mobilediffusion` leaves one: its architectures and their costs, three objectives, three rungs, 32
pictures of 64 px a trial (those of studies/emoji, each shaded), looks, lines of reference. Chromium opens the page, and in turn
a bare one that holds nothing but Plotly and a plot of 200 points. A line: megabytes, and megabytes of it in pictures;
milliseconds until the first paint, until ranges can be dragged, until the page is loaded and its front drawn, and of the
processor until then, each over those of the bare page (of which ranges are its plot); milliseconds of the processor for a step of
the mouse that drags a range on a page where every figure was drawn (mean of 40), and until such a step can be seen, the median
and the slowest.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from plotly.offline import get_plotlyjs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import chromium  # noqa: E402
import synthetic_run  # noqa: E402

from nas.report import page as report  # noqa: E402
from nas.space.search_space import SearchSpace  # noqa: E402

DRAWN = "document.readyState === 'complete' && document.querySelector('.main-svg')"
BARE = """<!doctype html><div id="plot"></div><script>{plotly}</script><script>
Plotly.newPlot("plot", [{{x: [...Array(200).keys()], y: [...Array(200).keys()], mode: "markers"}}]);</script>"""
NOTED = f"""(() => {{
  const look = () => {{
    if (document.querySelector(".coordinates path")) window.rangesAt ??= performance.now();
    {DRAWN} ? window.usableAt = performance.now() : setTimeout(look, 10);
  }};
  look();
}})()"""
DRAG = """(async () => {
  const handle = document.querySelectorAll(".handle")[AXIS], waits = [];
  handle.setPointerCapture = () => {};
  handle.scrollIntoView({block: "center", behavior: "instant"});
  const box = handle.getBoundingClientRect(), frame = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  const at = share => ({clientY: box.top + 10 + share * (box.height - 20), pointerId: 1});
  const send = (kind, share) => handle.dispatchEvent(new PointerEvent(kind, at(share)));
  await frame();
  send("pointerdown", 0.1);
  for (let step = 1; step <= 40; step++) {
    const began = performance.now();
    send("pointermove", 0.1 + 0.02 * step);
    await frame();
    waits.push(performance.now() - began);
  }
  send("pointerup", 0.9);
  return waits;
})()"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=lambda text: [int(one) for one in text.split(",")], default=[5, 64, 500])
    parser.add_argument("--repeats", type=int, default=3, help="times each page is opened; medians are printed")
    parser.add_argument("--keep", type=Path, help="a folder in which the pages are left")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.html"
        bare.write_text(BARE.format(plotly=get_plotlyjs()), encoding="utf-8")
        print(
            "trials     MB  pictures    paint (x bare)"
            "    ranges (x bare)     drawn (x bare)   processor (x bare)   a step of the mouse"
        )
        for trials in arguments.trials:
            page = report.write(run(Path(folder) / str(trials) / "run", trials))
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                (arguments.keep / f"{trials}.html").write_bytes(page.read_bytes())
            print(line(trials, page, bare, arguments.repeats, Path(folder)), flush=True)


def line(trials: int, page: Path, bare: Path, repeats: int, folder: Path) -> str:
    text = page.read_text(encoding="utf-8")
    pictures = sum(len(part.split(")")[0].split('"')[0]) for part in text.split("data:image/webp;base64,")[1:])
    found: dict[Path, list[dict[str, float]]] = {bare: [], page: []}
    for number in range(repeats):
        for path, opened in found.items():
            opened.append(open_once(path, folder / f"browser-{trials}-{number}-{path.stem}"))
    median = {
        path: {name: statistics.median(one[name] for one in opened) for name in opened[0]}
        for path, opened in found.items()
    }
    shown = "   ".join(
        f"{median[page][name]:7.0f} ms ({median[page][name] / median[bare][name]:4.2f})" for name in median[bare]
    )
    return f"{trials:6} {len(text) / 1e6:6.2f}  {pictures / 1e6:8.2f}  {shown}   {dragged(page, folder / f'mouse-{trials}')}"


def open_once(path: Path, profile: Path) -> dict[str, float]:
    """Milliseconds to what `line` tells, on the clock, and of the page's thread until all of it is there."""
    with chromium.browser(profile) as tab:
        tab.resize(1280, 900)
        tab.call("Performance.enable", timeDomain="threadTicks")
        tab.call("Page.enable")
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=NOTED)
        tab.open(path, "window.usableAt")
        paint = tab.value("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        ranges = tab.value("window.rangesAt || window.usableAt")
        return {"paint": paint, "ranges": ranges, "drawn": tab.value("window.usableAt"), "processor": processor_ms(tab)}


def dragged(path: Path, profile: Path) -> str:
    """What a step of the mouse takes on a page that was read to its end."""
    with chromium.browser(profile) as tab:
        tab.resize(1280, 900)
        tab.call("Performance.enable", timeDomain="threadTicks")
        tab.open(path, DRAWN)
        tab.value("window.dispatchEvent(new Event('beforeprint'))")
        tab.wait("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))", 120)
        tab.value("document.querySelector('.crossed').scrollIntoView({behavior: 'instant'})")
        tab.wait("document.querySelector('.crossed .main-svg')")
        axes = tab.value("document.querySelectorAll('.handle').length")
        began, waits = processor_ms(tab), tab.value(DRAG.replace("AXIS", str(axes - 1)))
        spent = (processor_ms(tab) - began) / len(waits)
        return f"{spent:.0f} ms, seen after {statistics.median(waits):.0f} ms, at most {max(waits):.0f} ms"


def processor_ms(tab: chromium.Page) -> float:
    """Of the page's thread since it was opened."""
    found = {one["name"]: one["value"] for one in tab.call("Performance.getMetrics")["metrics"]}
    return 1000 * float(found["TaskDuration"])


# --- a made-up run ---------------------------------------------------------------------------------------------------


def run(folder: Path, trials: int) -> Path:
    """A run directory as a search of `mobilediffusion` leaves it."""
    synthetic_run.write_lines(synthetic_run.write(folder, trials, pictures=False))
    space, rng = SearchSpace.load("mobilediffusion"), random.Random(0)
    path = folder / "resolved.yaml"
    deploy = {"image_size": 512, "downsampling": 8, "text_tokens": 77}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "deploy": deploy}, sort_keys=False))
    (folder / "captions.json").write_text(json.dumps([f"a small shape, number {n}, on white" for n in range(32)]))
    (folder / "looks.json").write_text(json.dumps({f"{n:012x}": look(space, rng) for n in range(118)}))
    drawn = tiles()
    for number in range(trials):
        choices = space.sample(rng)
        network = space.architecture(choices)
        synthetic_run.copy_with(folder, number, choices=choices, architecture=network.to_dict(), cost=costs(network))
        if json.loads((folder / "trials" / f"{number:04d}" / "record.json").read_text())["rungs"]:
            grid(drawn, number).save(folder / "trials" / f"{number:04d}" / "samples.png")
    for number, line_folder in enumerate((folder / "lines").iterdir()):
        grid(drawn, 10_000 + number).save(line_folder / "samples.png")
    return folder


def costs(network: Any) -> dict[str, int]:
    return {name: int(value) for name, value in vars(network.cost(64, 77)).items() if isinstance(value, int | float)}


def look(space: SearchSpace, rng: random.Random) -> dict[str, Any]:
    choices = space.sample(rng)
    scores = {"fid_efficientnet_lite0": rng.uniform(60, 200), "clip_score": rng.uniform(10, 25)}
    return {
        "choices": choices,
        "cost": costs(space.architecture(choices)),
        "metrics": scores,
        "failed": "",
        "seconds": 1.4,
    }


def tiles() -> np.ndarray:
    """Pictures that trials drew, (N, 64, 64, 3)."""
    found = []
    for path in sorted(Path(__file__).parents[1].glob("studies/emoji/samples.png")):
        picture = np.asarray(Image.open(path).convert("RGB"))
        corners = [(y, x) for y in range(2, picture.shape[0] - 64, 66) for x in range(2, picture.shape[1] - 64, 66)]
        found += [picture[y : y + 64, x : x + 64] for y, x in corners]
    return np.stack(found)


def grid(drawn: np.ndarray, number: int) -> Image.Image:
    """Eight by four of them in an order of the trial's own, each with its own shade."""
    rng = np.random.default_rng(number)
    canvas = np.full((2 + 66 * 4, 2 + 66 * 8, 3), 255, dtype=np.uint8)
    for place, one in enumerate(rng.permutation(len(drawn))[:32]):
        top, left = 2 + 66 * (place // 8), 2 + 66 * (place % 8)
        shade = rng.uniform(0.6, 1.0, 3)
        canvas[top : top + 64, left : left + 64] = (drawn[one] * shade).astype(np.uint8)
    return Image.fromarray(canvas)


if __name__ == "__main__":
    main()
