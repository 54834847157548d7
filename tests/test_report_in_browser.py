"""The report of 200 trials in a real browser: it opens, a click on the front shows that member's pictures, nothing overflows."""

import chromium
import pytest
import synthetic_run

from nas.analysis import findings, results
from nas.report import page as report

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="no chromium on this machine")
FIRST_PLOTS = "document.querySelectorAll('#front-0 .main-svg').length"
POINT = """(() => {
  const plot = document.getElementById("front-0"), trace = plot.data.find(trace => trace.name === "front");
  plot.scrollIntoView({block: "center", behavior: "instant"});
  const box = plot.getBoundingClientRect(), layout = plot._fullLayout;
  return {trial: plot._fullData[plot.data.indexOf(trace)].customdata[INDEX],
          x: box.left + layout._size.l + layout.xaxis.d2p(plot.calcdata[plot.data.indexOf(trace)][INDEX].x),
          y: box.top + layout._size.t + layout.yaxis.d2p(plot.calcdata[plot.data.indexOf(trace)][INDEX].y)};
})()"""


@pytest.fixture(scope="module")
def run_dir(long_run):
    return long_run[0]


@pytest.fixture(scope="module")
def page(long_run, tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as opened:
        opened.resize(1280, 900)
        opened.open(long_run[1], FIRST_PLOTS)
        yield opened


def test_a_click_on_a_front_member_shows_its_pictures(page, run_dir):
    point = page.value(POINT.replace("INDEX", "1"))
    assert page.value("detail.hidden") is True
    page.click(point["x"], point["y"])
    page.wait("!detail.hidden")
    members = results.load(run_dir).query("on_front")["trial"].tolist()
    assert point["trial"] in members
    assert page.value("detail.querySelector('h3').textContent").startswith(f"Trial {point['trial']}: ")
    tiles = f"[...detail.querySelectorAll('.tile.t{point['trial']}')]"
    assert page.value(f"{tiles}.length") == len(synthetic_run.CAPTIONS)
    assert page.value(
        f"{tiles}.every(tile => getComputedStyle(tile).backgroundImage.startsWith('url(\"data:image/webp'))"
    )
    captions = page.value("[...detail.querySelectorAll('figcaption')].map(caption => caption.textContent)")
    assert captions == synthetic_run.CAPTIONS  # the one with <script> as text
    page.value("close()")


def test_an_address_opens_a_trial(page, run_dir):
    stopped = int(results.load(run_dir).query("state == 'stopped'")["trial"].iloc[0])
    page.value(f"location.hash = 'trial={stopped}'")
    page.wait("!detail.hidden")
    assert "stopped" in page.value("detail.querySelector('h3').textContent")
    assert "behind 60 %" in page.value("detail.textContent")
    page.value("close()")


def test_every_figure_is_drawn_before_printing(page):
    page.value("window.dispatchEvent(new Event('beforeprint'))")
    page.wait("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))", 60)
    assert page.value("document.querySelectorAll('.plot .main-svg').length") > 0


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(page, width):
    page.resize(width, 900)
    page.wait("document.documentElement.clientWidth <= " + str(width))
    page.wait(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )  # figures follow the window
    cut = """[...document.querySelectorAll('.winner *')].filter(part => part.offsetParent &&
        part.getBoundingClientRect().right > document.querySelector('.winner').getBoundingClientRect().right + 1).length"""
    assert page.value(cut) == 0


def test_the_first_screen_says_who_won_why_and_at_what_cost(page, run_dir):
    page.resize(1280, 900)
    run = findings.Run.read(run_dir)
    heads = "[...document.querySelectorAll('.winner h3')]"
    expected = [f"The winner: trial {run.knee}", "Why it won", "What it cost to find"]
    assert sorted(page.value(f"{heads}.map(head => head.textContent)")) == sorted(expected)
    page.value("window.scrollTo(0, 0)")
    assert page.value(f"{heads}.every(head => head.getBoundingClientRect().bottom < 900)")


def test_no_script_came_in_with_the_data(page):
    assert page.value("document.querySelectorAll('script').length") == 3  # its data, plotly, its own


def test_the_front_of_a_space_of_thirteen_choices_fits_a_laptop(page, tmp_path):
    run_dir = synthetic_run.write_lines(synthetic_run.write(tmp_path / "run"))
    for number in range(24):
        attention = {
            f"{kind}_attention_{size}": bool(number % 2) for kind in ("self", "cross") for size in (64, 32, 16)
        }
        rest = {"bottleneck_channels": 768 + 128 * (number % 3), "depth_down_16": number % 4, "depth_up_16": number % 3}
        kinds = {f"conv_{size}": ["full", "separable"][number // 2 % 2] for size in (64, 32, 16)}
        synthetic_run.copy_with(run_dir, number, choices={**rest, **attention, "ffn_ratio": number % 3, **kinds})
    page.resize(1400, 900)
    page.open(report.write(run_dir), FIRST_PLOTS)
    table = "document.querySelector('.full table').parentElement"
    assert page.value("document.querySelectorAll('.full tr:first-child th').length") >= 13
    assert page.value(f"{table}.scrollWidth - {table}.clientWidth") <= 0
