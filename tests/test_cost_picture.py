"""`nas cost`: the bars of its picture hold the whole cost; what no picture is written to, and what it would ignore, is said."""

import pytest
from in_process import nas

from nas.errors import InputError
from nas.networks.backbones import presets
from nas.space import cost_picture


@pytest.mark.parametrize("name", ["mobilediffusion", "pixart"])
def test_bars_hold_what_a_network_costs(name):
    config = presets()[name]
    parts = config.parts(64, 77)
    bars = cost_picture.bars_of(parts, ["self-attention", "ffn"])
    assert sum(macs for _, row in bars for _, macs in row) == pytest.approx(config.cost(64, 77).macs / 1e9)
    sides = [side for side, _ in bars]
    assert sides == sorted(sides, reverse=True) and set(sides) <= {part.side for part in parts}
    attention = sum(part.cost.macs for part in parts if part.component == "self-attention") / 1e9
    assert sum(macs for _, row in bars for component, macs in row if component == "self-attention") == pytest.approx(
        attention
    )


def test_networks_are_drawn_one_below_the_other(tmp_path):
    told = nas("cost", "mobilediffusion", "dit-xl-2", "--picture", str(tmp_path / "new" / "costs.svg"))
    assert f"wrote {tmp_path / 'new' / 'costs.svg'}" in told.stdout
    drawn = (tmp_path / "new" / "costs.svg").read_text()
    assert drawn.startswith("<?xml") and drawn.count('<g id="axes_') == 2


@pytest.mark.parametrize("name", ["costs.xyz", "costs", "file/costs.png"])
def test_what_no_picture_is_written_to_is_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"--picture .*(expected a file that ends in .png, .svg, .pdf|cannot be written)"
    ):
        cost_picture.save(cost_picture.draw({"one": presets()["mobilediffusion"].parts(64, 77)}), tmp_path / name)


@pytest.mark.parametrize("option", [["--paper"], ["--json"], ["--csv", "costs.csv"]])
def test_what_a_cost_by_component_would_ignore_is_refused(option):
    told = nas("cost", "mobilediffusion", "--by", "component", *option)
    assert (told.returncode, told.stderr) == (2, f"nas: {option[0]}: ignored with --by; expected one of the two\n")
