"""Working with a report in a real browser: ranges choose trials, any two numbers are drawn, two trials are compared."""

import chromium
import pytest

from nas.analysis import findings, importance, results
from nas.report import details

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="no chromium on this machine")
OUT = "[...document.querySelectorAll('tr.out')].map(row => Number(row.dataset.trial))"
LINES = "[...document.querySelectorAll('.coordinates path:not(.out)')].map(path => Number(path.dataset.trial))"


@pytest.fixture(scope="module")
def run(long_run):
    return findings.Run.read(long_run[0])


@pytest.fixture(scope="module")
def opened(long_run, tmp_path_factory):
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as page:
        page.resize(1280, 900)
        page.open(long_run[1], "document.querySelectorAll('#front-0 .main-svg').length")
        yield page


@pytest.fixture
def page(opened):
    opened.value("close(); document.querySelector('.choosing button').click()")
    return opened


def drag(page, axis, low, high):
    """Along an axis from one height to another, both between 0 and 1."""
    page.value("document.querySelector('.coordinates').scrollIntoView({block: 'center', behavior: 'instant'})")
    found = f"document.querySelector('.handle[data-axis=\"{axis}\"]').getBoundingClientRect()"
    box = page.value(f"(box => ({{x: box.left + box.width / 2, top: box.top + 10, high: box.height - 20}}))({found})")
    places = [(box["x"], box["top"] + box["high"] * (1 - height)) for height in (low, (low + high) / 2, high)]
    for kind, (x, y) in zip(
        ("mousePressed", "mouseMoved", "mouseMoved", "mouseReleased"), [*places, places[-1]], strict=True
    ):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)


def test_a_range_of_an_axis_keeps_its_trials_everywhere(page, run):
    columns, trained = importance.parallel(run.table, run.goals)
    column = next(iter(run.goals))
    values = trained[column].astype(float)
    low, high = values.min(), values.min() + 0.45 * (values.max() - values.min())
    drag(page, columns.index(column), 0.0, 0.45)
    kept = {int(trial) for trial in page.value(LINES)}
    certain = set(trained.loc[values < high - 0.03 * (high - low), "trial"])  # the mouse is a pixel wide
    outside = set(trained.loc[values > high + 0.06 * (high - low), "trial"])
    assert certain <= kept and not outside & kept and 3 < len(kept) < len(trained)
    assert (
        page.value("document.querySelector('.choosing output').value")
        == f"{len(kept)} of {len(trained)} trained trials"
    )
    rows = set(page.value(OUT))
    assert rows == set(trained["trial"]) - kept  # every trial has a row in the table of all
    trace = "document.getElementById('front-0').data.find(one => one.name === 'fully trained')"
    page.value("document.getElementById('front-0').scrollIntoView({behavior: 'instant'})")
    page.wait(f"{trace}.selectedpoints")  # figures follow when they can be seen
    selected = page.value(f"(trace => [trace.customdata, trace.selectedpoints])({trace})")
    assert {selected[0][place] for place in selected[1]} == kept & set(selected[0])
    drag(page, columns.index(column), 0.2, 0.2)  # a click
    assert not page.value(OUT)


def test_two_ranges_hold_together_and_those_stopped_can_be_left_out(page, run):
    columns, trained = importance.parallel(run.table, run.goals)
    drag(page, 0, 0.9, 1.0)
    first = set(page.value(LINES))
    drag(page, len(columns) - 1, 0.5, 1.0)
    both = set(page.value(LINES))
    assert both < first < set(trained["trial"])
    page.value("document.querySelector('.choosing input').click()")
    stopped = set(trained.loc[trained["state"] == "stopped", "trial"])
    assert set(page.value(LINES)) == both - stopped


def test_two_trials_are_set_side_by_side_and_have_an_address(page, run, long_run):
    one, other = (int(trial) for trial in run.best["trial"].iloc[:2])
    page.value(f"location.hash = 'trial={one}'")
    page.wait("!detail.hidden")
    page.value("[...detail.querySelectorAll('button')].find(one => one.textContent.startsWith('Compare')).click()")
    page.value(f"document.querySelector('tr[data-trial=\"{other}\"]').click()")
    assert page.value("detail.querySelector('h3').textContent") == f"Trials {one} and {other}"
    choices = [dict(details.of_run(run, {})["trials"][trial]["choices"]) for trial in (one, other)]
    differing = {name for name in {*choices[0], *choices[1]} if choices[0].get(name) != choices[1].get(name)}
    assert differing
    tables = "[...detail.querySelectorAll('table')]"
    assert (
        set(page.value(f"[...{tables}[1].querySelectorAll('tr.differs td:first-child')].map(cell => cell.textContent)"))
        == differing
    )
    assert page.value("location.hash") == f"#trial={one}&with={other}"
    assert page.value("[...detail.querySelectorAll('code')].map(part => part.textContent.split(' ').pop())") == [
        f"trial:{one}",
        f"trial:{other}",
    ]
    page.open(f"{long_run[1]}#trial={one}&with={other}", "!detail.hidden")
    assert page.value("detail.querySelector('h3').textContent") == f"Trials {one} and {other}"


def test_any_two_numbers_are_drawn(page, run):
    page.value("document.querySelector('.crossed').scrollIntoView({block: 'center', behavior: 'instant'})")
    page.wait("document.querySelector('.crossed .main-svg')")
    page.value("""(selects => { selects[0].value = "params"; selects[1].value = "clip_score";
      selects.forEach(select => select.dispatchEvent(new Event("change"))); })(document.querySelectorAll('.crossing select'))""")
    page.wait("document.querySelector('.crossed').layout.xaxis.title.text === 'Parameters (M)'")
    traces = page.value("document.querySelector('.crossed').data.map(trace => [trace.customdata, trace.x, trace.y])")
    drawn = {int(trial): (x, y) for trials, xs, ys in traces for trial, x, y in zip(trials, xs, ys, strict=True)}
    table = results.load(run.path).set_index("trial")
    assert set(drawn) == set(table.index[table["state"].isin(["complete", "stopped"])])
    assert all(
        xy == pytest.approx((table["params"][trial] / 1e6, table["clip_score"][trial])) for trial, xy in drawn.items()
    )
