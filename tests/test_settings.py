import math
import string

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from nas.documents import quantities
from nas.errors import InputError
from nas.settings import study_file
from nas.settings.study import Study

GOOD = """\
# A study
question: Which one?
space: mobilediffusion
dataset: emoji
training:
  batch: 32
  learning_rate: 3e-4
metrics:
  - fid
  - name: clip_score
    judge: shipped
budget: {params: 400M, macs: 2.0e+11}
search:
  trials: 4
  minimise: [fid_efficientnet_lite0, macs]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies") / "mine"


def written(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return folder / "study.yaml"


def load(folder, text, *overrides):
    return study_file.load(written(folder, text), overrides)


def refusal(folder, text, *overrides):
    """The one line that refuses a study."""
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- good files ------------------------------------------------------------------------------------------------------


def test_a_good_file_is_read(folder):
    study = load(folder, GOOD)
    assert study.name == "mine"  # the folder's
    assert study.training.learning_rate == 3e-4  # a string to YAML
    assert study.training.batch == 32 and study.training.warmup_images == 1024
    assert study.budget == {"params": 4e8, "macs": 2e11}
    assert study.dataset.name == "emoji" and study.dataset.options == {}
    assert [metric.name for metric in study.metrics] == ["fid", "clip_score"]
    assert study.metrics[1].options == {"judge": "shipped"}
    assert study.search.objectives == {"fid_efficientnet_lite0": "minimise", "macs": "minimise"}


def test_the_folder_stands_for_its_study(folder):
    written(folder, GOOD)
    assert study_file.load(folder) == study_file.load(folder / "study.yaml")


def test_resolved_names_every_setting_and_is_a_study_again(folder):
    study = load(folder, GOOD)
    resolved = study.resolved()
    assert resolved["dataset"]["image_size"] == 64 and resolved["objective"]["prediction"] == "v"
    assert resolved["metrics"][0]["features"] == "efficientnet_lite0"
    assert resolved["training"]["betas"] == [0.9, 0.999] and resolved["workers"] is None
    assert set(resolved) == set(Study.model_fields) - {"prior"}  # which is written where there is one
    again = load(folder, yaml.safe_dump(resolved))
    assert again.resolved() == resolved


def test_a_study_cannot_be_changed(folder):
    study = load(folder, GOOD)
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 3
    with pytest.raises(ValueError, match="frozen"):
        study.training.batch = 3


def test_overrides_replace_add_and_are_yaml(folder):
    overrides = ["training.batch=8", "stopping.rungs=[0.5, 1]", "seed=7", "name=yours", "training.learning_rate=1e-2"]
    study = load(folder, GOOD, *overrides)
    assert study.training.batch == 8 and study.stopping.rungs == (0.5, 1.0)
    assert study.seed == 7 and study.name == "yours" and study.training.learning_rate == 0.01
    assert load(folder, GOOD, "dataset={name: emoji, limit: 5}").dataset.options == {"limit": 5}
    assert load(folder, GOOD, "question=a=b").question == "a=b"


# --- bad files: the marked line is the one that is named ---------------------------------------------------------------

STYLES = "dataset:\n  name: emoji\n  styles:\n    - noto\n"
UNLEARNABLE = "objective: {name: denoising, prediction: epsilon, zero_terminal_snr: true}"
GOALS = "  minimise: [fid_efficientnet_lite0, macs]"
BAD = [
    # what stands in the file -> what stands there instead, and what the message has to say
    ("seed", "dataset: emoji", "dataset: emoji\nsed: 3 # here", ["sed: unknown key", "did you mean 'seed'?"]),
    ("nested key", "  batch: 32", "  batchs: 32 # here", ["training.batchs: unknown key", "did you mean 'batch'?"]),
    ("far key", "  batch: 32", "  zzz: 32 # here", ["training.zzz: unknown key", "expected one of: images_seen, batch"]),
    ("flow key", "budget: {params", "sampling: {step: 3} # here\nbudget: {params", ["sampling.step", "'steps'"]),
    ("menu key", "dataset: emoji", "dataset:\n  name: emoji\n  stiles: [noto] # here", ["dataset.stiles", "'styles'"]),
    ("metric key", "    judge: shipped", "    juge: x # here", ["metrics.1.juge: unknown key", "'judge'"]),
    ("key is a number", "space:", "3: 4 # here\nspace:", ["3: "]),
    ("not a number", "  batch: 32", "  batch: many # here", ["training.batch: expected", "integer", "'many'"]),
    ("a fraction", "  batch: 32", "  batch: 3.5 # here", ["training.batch: expected", "integer", "3.5"]),
    ("too small", "  batch: 32", "  batch: 0 # here", ["training.batch: expected greater than or equal to 1, got 0"]),
    ("null", "  batch: 32", "  batch: # here", ["training.batch: expected", "None"]),
    ("a list", "  batch: 32", "  batch: [32] # here", ["training.batch: expected", "[32]"]),
    ("a choice", "  batch: 32", "  precision: fp16 # here", ["training.precision: expected 'fp32' or 'bf16', got 'fp16'"]),
    ("a boolean", "question: Which one?", "question: true # here", ["question: expected", "string", "True"]),
    ("section is a word", "dataset: emoji", "dataset: emoji\nproxy: small # here", ["proxy: expected a section", "'small'"]),
    ("true for a number", "  batch: 32", "  batch: true # here", ["training.batch: expected a number, got True"]),
    ("yes for a number", "  trials: 4", "  trials: yes # here", ["search.trials: expected a valid integer, got 'yes'"]),
    ("off in a list", "  batch: 32", "  betas: [off, 0.9] # here", ["training.betas.0: expected a valid number, got 'off'"]),
    ("true in a list", "  batch: 32", "  betas: [false, 0.9] # here", ["training.betas.0: expected a number, got False"]),
    ("infinite", "  batch: 32", "  gradient_clip: .inf # here", ["training.gradient_clip: expected", "number, got '.inf'"]),
    ("infinity", "  batch: 32", "  gradient_clip: Infinity # here", ["gradient_clip: expected a finite number, got 'Inf"]),
    ("not a number", "  batch: 32", "  weight_decay: nan # here", ["training.weight_decay: expected", "got 'nan'"]),
    ("sixty", "  batch: 32", "  batch: 1:30 # here", ["training.batch: expected a valid integer, got '1:30'"]),
    ("sixteen", "  batch: 32", "  batch: 0x20 # here", ["training.batch: expected a valid integer, got '0x20'"]),
    ("menu boolean", "dataset: emoji", "dataset:\n  name: emoji\n  limit: yes # here", ["dataset.limit: expected", "'yes'"]),
    ("rule about a key", "search:", "stopping:\n  keep: 0.3 # here\nsearch:", ["stopping.keep: rule improvement does not"]),
    ("a word for a list", "metrics:\n", "metrics: fid # here\nx:\n", ["metrics: expected", "'fid'"]),
    ("number for a menu", "dataset: emoji", "dataset: 3 # here", ["dataset: expected", "3"]),
    ("unknown dataset", "dataset: emoji", "dataset: emojis # here", ["dataset.name: ", "'emojis'", "'emoji'?", "coco"]),
    ("unknown named", "dataset: emoji", "dataset:\n  name: emojis # here", ["dataset.name: ", "did you mean 'emoji'?"]),
    ("path for a name", "dataset: emoji", "dataset: ../errors # here", ["unknown name '../errors'"]),
    ("dunder", "dataset: emoji", "dataset: __init__ # here", ["unknown name '__init__'"]),
    ("unknown metric", "  - fid", "  - fit # here", ["metrics.0.name: ", "unknown name 'fit'", "did you mean 'fid'?"]),
    ("unknown objective", "dataset: emoji", "objective: denoise # here\ndataset: emoji", ["objective.name", "'denoising'"]),
    ("unknown autoencoder", "dataset: emoji", "autoencoder: vae # here\ndataset: emoji", ["autoencoder.name", "kl"]),
    ("menu without a name", "dataset: emoji", "dataset: {limit: 3} # here", ["dataset.name: required, but not given"]),
    ("menu value", "dataset: emoji", "dataset:\n  name: emoji\n  limit: 0 # here", ["dataset.limit: expected", "got 0"]),
    ("item", "dataset: emoji", STYLES + "    - nota # here", ["dataset.styles.1", "'nota'"]),
    ("objective's rule", "dataset: emoji", f"{UNLEARNABLE} # here\ndataset: emoji", ["objective: zero_terminal_snr needs"]),
    ("budget word", "params: 400M", "params: 400MB", ["budget.params: expected a positive number such as 400M", "'400MB'"]),
    ("budget zero", "params: 400M", "params: 0", ["budget.params: expected a positive number", "got 0"]),
    ("rungs", "search:", "stopping: {rungs: [1, 0.5]} # here\nsearch:", ["stopping.rungs: expected rising fractions"]),
    ("no objectives", GOALS, "  sampler: tpe", ["search: expected at least one column"]),
    ("twice", GOALS, "  minimise: [macs]\n  maximise: [macs]", ["search: a column is named twice: macs, macs"]),
    ("no dataset", "dataset: emoji\n", "", ["study.yaml:2: dataset: required, but not given"]),
    ("no space", "space: mobilediffusion\n", "", ["study.yaml:2: space: required, but not given"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_study_is_one_line_with_file_line_key_and_value(folder, old, new, said):
    assert GOOD.count(old) == 1
    text = GOOD.replace(old, new)
    message = refusal(folder, text)
    for part in said:
        assert part in message, message
    marked = [number for number, line in enumerate(text.splitlines(), 1) if "# here" in line]
    if marked:
        assert message.startswith(f"{folder / 'study.yaml'}:{marked[0]}: "), message
    assert message.startswith(str(folder / "study.yaml"))


def test_the_first_mistake_is_told_and_the_others_counted(folder):
    text = GOOD.replace("batch: 32", "batchs: 32").replace("trials: 4", "trails: 4").replace("400M", "many")
    assert refusal(folder, text).endswith("(and 2 more)")


NO_STUDIES = {
    "empty": ("", "expected a mapping of settings, got NoneType"),
    "a list": ("- a\n- b\n", "expected a mapping of settings, got list"),
    "a word": ("hello", "expected a mapping of settings, got str"),
    "open bracket": ("space: [a, b\nseed: 3\n", ":2: not valid YAML"),
    "tab": ("training:\n\tbatch: 3\n", ":2: not valid YAML"),
    "two documents": ("space: a\n---\nspace: b\n", ":2: not valid YAML"),
    "python object": ("space: !!python/object/apply:os.system [ls]\n", ":1: not valid YAML"),
    "zero byte": ("seed: 1\nspace: a\x00b\n", ":2: not valid YAML: the character '\\x00'"),
    "itself": ("seed: 1\nquestion: &a [*a]\n", ":2: the alias *a stands inside what it stands for"),
    "no anchor": ("seed: 1\nquestion: *a\n", ":2: not valid YAML: the alias *a stands before its anchor"),
    "a tag": ("seed: 1\nquestion: !!int zebra\n", ":2: not valid YAML here: the tag !!int, expected a plain value"),
    "a timestamp": ("seed: 1\nquestion: !!timestamp 2025-13-45\n", ":2: not valid YAML here: the tag !!timestamp"),
    "a list as a key": ("seed: 1\n[a]: 3\n", ":2: a list, a mapping or an alias as a key, expected a word"),
    "merged list": ("seed: 1\ntraining:\n  <<: [3]\n", ":3: training.<<: expected a mapping or a list of mappings"),
    "brackets": ("seed: 1\nquestion: " + "[" * 3_000, ":2: nested more than 40 deep"),
    "mappings": ("seed: 1\nquestion: " + "{a: " * 3_000, ":2: nested more than 40 deep"),
    "many values": ("seed: 1\nquestion:\n" + "- 1\n" * 20_000, ":10000: more than 10,000 values"),
    "many aliases": (
        "a: &a [1, 2, 3]\n" + "".join(f"a{i}: *a\n" for i in range(2_500)),
        ":2500: more than 10,000 values",
    ),
    "a long alias": (f"a: &a {'z' * 400_000}\nb: [{', '.join(['*a'] * 26)}]\n", ":2: more than 10,000 values"),
    "a long key": ("seed: 1\n" + "z" * 600 + ": 3\n", ":2: a key of 600 characters, expected at most 200"),
    "a long file": ("question: " + "z" * 2**20, ":1: more than 1,048,576 characters"),
    "a key twice": ("seed: 1\nspace: a\nseed: 2\n", ":3: seed: given twice, first on line 1"),
    "twice on a line": ("proxy: {a: 1, a: 2}\n", ":1: proxy.a: given twice"),
    "a nested key twice": ("training:\n  batch: 1\n  batch: 2\n", ":3: training.batch: given twice, first on line 2"),
}


@pytest.mark.parametrize("what", NO_STUDIES)
def test_what_is_no_settings_file_is_told(folder, what):
    text, said = NO_STUDIES[what]
    message = refusal(folder, text)
    assert message.startswith(str(folder / "study.yaml")) and said in message, message


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        study_file.load(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match=r"study\.yaml: no such file"):
        study_file.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("question: où?".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.yaml:1: cannot be read: not UTF-8") as caught:
        study_file.load(tmp_path / "latin.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.batch", "--set training.batch: expected key=value"),
        ("=3", "expected key=value"),
        ("training.batch=[1", "--set training.batch=[1: not valid YAML: did not find expected ',' or ']'"),
        ("question=a\x00b", "not valid YAML: the character '\\x00'"),
        ("question=" + "[" * 99, "nested more than 40 deep"),
        ("space.name=3", "--set space.name=3: 'space' is not a section"),
        ("metrics.0.name=fid", "'metrics' is not a section"),
        ("training.batchs=3", "--set training.batchs: unknown key; did you mean 'batch'?"),
        ("training.batch=many", "--set training.batch: expected a valid integer, got 'many'"),
        ("training={batch: many}", "--set training.batch: expected a valid integer, got 'many'"),
        ("search.trials=yes", "--set search.trials: expected a valid integer, got 'yes'"),
        ("search.trials=true", "--set search.trials: expected a number, got True"),
        ("dataset=emojis", "dataset.name: datasets: unknown name 'emojis'"),
        ("budget.params=lots", "budget.params: expected a positive number"),
    ],
)
def test_bad_overrides_are_named(folder, override, said):
    assert said in refusal(folder, GOOD, override)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("400M", 4e8),
        ("200G", 2e11),
        ("1.5T", 1.5e12),
        (" 8 K ", 8e3),
        ("4.0e+8", 4e8),
        ("4e8", 4e8),
        (17, 17),
        (2.5, 2.5),
    ],
)
def test_counts_with_suffixes(text, value):
    assert quantities.count(text) == value


@given(st.floats(1e-3, 1e6), st.sampled_from([("", 1.0), ("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)]))
@effort(max_examples=80, deadline=None)
def test_a_suffix_multiplies(number, suffix):
    assert quantities.count(f"{number!r}{suffix[0]}") == pytest.approx(number * suffix[1])


@given(st.one_of(st.text(string.printable, max_size=8), st.none(), st.booleans(), st.lists(st.integers(), max_size=2)))
@example("nan")
@example("inf")
@example("1e999")
@example("-3M")
@example("0")
@example("400m")
@example("4 00M")
@example("--")
@example("1e5e")
@effort(max_examples=150, deadline=None)
def test_what_is_no_count_is_a_value_error(value):
    try:
        counted = quantities.count(value)
    except ValueError as error:
        assert "expected a positive number such as 400M" in str(error)
    else:
        assert 0 < counted < math.inf and any(digit in str(value) for digit in string.digits)


# --- anything at all -------------------------------------------------------------------------------------------------


@given(st.data())
@effort(max_examples=150, deadline=None)
def test_a_damaged_file_is_a_study_or_one_readable_line(folder, data):
    """A few characters of a good file cut out or replaced."""
    start = data.draw(st.integers(0, len(GOOD)))
    stop = data.draw(st.integers(start, min(len(GOOD), start + 6)))
    put = data.draw(st.text(st.sampled_from("a3:-[]{}&*!|>'\"%@# \n\t,.~?=\x00é<"), max_size=4))
    path = written(folder, GOOD[:start] + put + GOOD[stop:])
    try:
        study_file.load(path)
    except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
