"""Designs of ablations: cells against brute force, study files, and what is refused."""

from itertools import product

import pytest
from ablation_study import STUDY, loaded
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.networks import backbones
from nas.settings import design
from nas.settings import study as study_file
from nas.trial.checks import check

sizes = st.lists(st.integers(2, 4), min_size=1, max_size=3)


def designed(kind, sizes, **more):
    factors = {f"f{i}": {"field": f"training.f{i}", "levels": list(range(size))} for i, size in enumerate(sizes)}
    return design.Settings(design=kind, factors=factors, minimise=["fid"], **more)


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_factorial_is_every_combination_once(counts):
    found = [tuple(cell.levels.values()) for cell in design.cells(designed("factorial", counts))]
    assert found == [tuple(map(str, row)) for row in product(*map(range, counts))]


@settings(max_examples=30, deadline=None)
@given(sizes, st.randoms())
def test_one_factor_is_every_combination_at_distance_one_from_the_reference(counts, rng):
    reference = {f"f{i}": rng.randrange(size) for i, size in enumerate(counts)}
    cells = design.cells(designed("one_factor", counts, reference=reference))
    found = {tuple(map(int, cell.levels.values())) for cell in cells}
    wanted = {row for row in product(*map(range, counts)) if sum(map(lambda a, b: a != b, row, reference.values())) < 2}
    assert found == wanted and len(cells) == len(wanted)
    assert cells[0].name == "reference" and tuple(map(int, cells[0].levels.values())) == tuple(reference.values())


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_leave_one_out_is_the_full_cell_and_each_factor_set_back(counts):
    cells = design.cells(designed("leave_one_out", counts))
    full = [size - 1 for size in counts]
    wanted = [full] + [[0 if i == out else last for i, last in enumerate(full)] for out in range(len(counts))]
    assert [list(map(int, cell.levels.values())) for cell in cells] == wanted
    assert [cell.name for cell in cells] == ["full", *(f"without f{i}" for i in range(len(counts)))]


def test_outstanding_is_what_no_record_completes_whole_repeats_first():
    asked = designed("factorial", [2], repeats=2)
    records = [{"cell": "f0=0", "repeat": 0, "state": "complete"}, {"cell": "f0=1", "repeat": 0, "state": "failed"}]
    assert design.outstanding(asked, records) == [("f0=1", 0), ("f0=0", 1), ("f0=1", 1)]


# --- study files -----------------------------------------------------------------------------------------------------


def test_cells_set_what_their_levels_say(tmp_path):
    study = loaded(tmp_path)
    cells = {cell.name: cell for cell in design.cells(study.ablation)}
    assert list(cells) == ["ratio=2, pace=slow", "ratio=2, pace=fast", "ratio=3, pace=slow", "ratio=3, pace=fast"]
    fast = design.changed(study, cells["ratio=2, pace=fast"].settings)
    assert (fast.training.learning_rate, fast.sampling.steps, fast.training.images_seen) == (1e-3, 1, 32)
    networks = design.architectures(study)
    # the outer level has no transformer, so its ratio builds nothing and the canonical network keeps the default there
    assert [level.ffn_ratio for level in networks["ratio=2, pace=fast"].levels[1:]] == [2, 2]
    assert networks["ratio=3, pace=fast"].key == networks["ratio=3, pace=slow"].key
    again = study_file.Study.model_validate(study.resolved())
    assert again.resolved() == study.resolved()


def test_a_level_may_name_another_network_and_change_its_fields(tmp_path):
    own = "{architecture: {backbone: dit, depth: 2, width: 768, heads: 6}}"
    named = "{unet: {}, dit: {architecture: dit-xl, architecture.depth: 6}, own: " + own + "}"
    networks = design.architectures(loaded(tmp_path, factor("{levels: " + named + "}")))
    assert networks["x=unet"] == design.base_architecture(loaded(tmp_path)).canonical()
    assert networks["x=dit"].to_dict() == {**backbones.presets()["dit-xl"].to_dict(), "depth": 6}
    assert networks["x=own"].to_dict()["backbone"] == "dit" and networks["x=own"].depth == 2
    listed = design.architectures(loaded(tmp_path, factor("{field: architecture, levels: [mobilediffusion, dit-xl]}")))
    assert listed["x=dit-xl"] == backbones.presets()["dit-xl"].canonical()


def factor(text):
    return f"ablation.factors={{x: {text}}}"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (factor("{field: architecture.levels.2.chanels, levels: [768, 1024]}"),
         ["factors.x.field", "chanels", "did you mean 'levels.2.channels'"]),
        (factor("{field: architecture.levels.2.channels, levels: [1024, 1000]}"),
         ["factors.x.levels.1", "1000", "divisible by groups=32"]),
        (factor("{field: architecture.shared_kv, levels: [true, maybe]}"), ["factors.x.levels.1", "shared_kv", "maybe"]),
        (factor("{field: architecture, levels: [mobilediffusion, dit-xk]}"),
         ["factors.x.levels.1", "'dit-xk'", "did you mean 'dit-xl'"]),
        (factor("{field: architecture, levels: [mobilediffusion, 3]}"), ["factors.x.levels.1", "3: expected a preset"]),
        (factor("{field: architecture, levels: [mobilediffusion, null]}"), ["factors.x.levels.1", "expected a preset"]),
        (factor("{levels: {p: {}, q: {architecture: dit-xl, architecture.conv: full}}}"),
         ["levels.q.architecture.conv", "no field"]),
        (factor("{field: training.learning_rat, levels: [1, 2]}"), ["factors.x.field", "training.learning_rat", "unknown key"]),
        (factor("{field: training.learning_rate, levels: [1, -2]}"), ["factors.x.levels.1", "greater than 0", "-2"]),
        (factor("{field: objective.prediction, levels: [v, w]}"), ["factors.x.levels.1", "objective.prediction", "'w'"]),
        (factor("{field: objective.predicton, levels: [v, w]}"), ["factors.x.field", "did you mean 'prediction'"]),
        (factor("{field: sampling.steps, levels: [1, 0]}"), ["factors.x.levels.1", "sampling.steps", "0"]),
        (factor("{field: trainng.batch, levels: [1, 2]}"), ["factors.x.field", "trainng", "did you mean 'training'"]),
        (factor("{levels: {p: {training.batch: 8}, q: {training.bach: 8}}}"),
         ["factors.x.levels.q.training.bach", "unknown key"]),
        (factor("{field: training.batch, levels: [8]}"), ["factors.x", "1 given, expected at least two"]),
        (factor("{field: training.batch, levels: [8, 8]}"), ["factors.x", "8 is given twice"]),
        (factor("{levels: [8, 16]}"), ["factors.x", "give field"]),
        (factor("{field: architecture.activation, levels: [swish, swish ]}"), ["given twice"]),
        (factor("{levels: {p: {}, q: {architecture.levels.0.ffn_ratio: 4}}}"), ["'x=p' and 'x=q' are the same"]),
        ("ablation.factors.more={field: training.learning_rate, levels: [1.0e-4, 1.0e-3]}", ["factors.more", "'pace' sets too"]),
        ("ablation.repeats=1", ["ablation.repeats: 1 gives no interval", "at least 2"]),
        ("ablation.repeats=0", ["ablation.repeats", "greater than or equal to 1"]),
        ("ablation.reference={ratoi: 2}", ["no factor 'ratoi'", "did you mean 'ratio'"]),
        ("ablation.reference={ratio: 5}", ["reference.ratio: no level 5", "2, 3"]),
        ("ablation.minimise=[denoising_los]", ["ablation.minimise", "denoising_los", "did you mean 'denoising_loss'"]),
        ("ablation.minimise=[macs]", ["ablation.minimise", "macs"]),
        ("architecture=mobildiffusion", ["architecture", "mobildiffusion", "did you mean 'mobilediffusion'"]),
        ("architecture=null", ["architecture", "required"]),
        ("search={minimise: [macs]}", ["ablation", "one of search and ablation"]),
        ("budget={params: 1M}", ["budget", "cell 'ratio=2, pace=slow'", "params"]),
        ("proxy.width_divisor=3", ["cell 'ratio=2, pace=slow'", "width_divisor=3"]),
        ("training.init=supernet", ["training.init", "space"]),
        ("training.init=base", ["training.init", "no base section"]),
        ("base={checkpoint: nowhere}", ["base.checkpoint", "nowhere", "no such file"]),
        ("base={training: {init: base}}", ["base.training.init", "cannot start from itself"]),
        ("base={objective: {name: denoising, prediction: x}}", ["base.objective", "prediction", "'x'"]),
    ],
)  # fmt: skip
def test_a_bad_ablation_is_one_line_and_nothing_is_written(tmp_path, override, words):
    with pytest.raises(InputError) as error:
        check.check(loaded(tmp_path, override), None)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_errors_name_the_line_of_the_file(tmp_path):
    with pytest.raises(InputError) as error:
        loaded(tmp_path, text=STUDY.replace("fast: {training.learning_rate", "fast: {training.learning_rte"))
    assert "study.yaml:17: ablation.factors.pace.levels.fast.training.learning_rte" in str(error.value)


def test_cells_must_have_the_shapes_of_the_base_they_start_from(tmp_path):
    study = loaded(tmp_path, "training.init=base", "base={training: {images_seen: 16, batch: 16}}")
    with pytest.raises(InputError) as error:
        check.check(study, None)
    assert "cell 'ratio=2" in str(error.value) and "the base model is another architecture" in str(error.value)


def test_cells_must_lie_in_the_supernet_they_start_from(tmp_path):
    wide = "{field: architecture.levels.2.channels, levels: [1024, 1536]}"
    with pytest.raises(InputError) as error:
        check.check(loaded(tmp_path, "training.init=supernet", "space=mobilediffusion", factor(wide)), None)
    assert "cell 'x=1536'" in str(error.value) and "does not cover" in str(error.value)
