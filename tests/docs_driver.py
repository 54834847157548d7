"""Does what the documentation says, block by block, in a copy of the repository: python docs_driver.py FOLDER CONVERSIONS.

The folder is what a clone is: nas/, search_spaces/, studies/, tests/. Files that a page shows are written into it, commands
are run through the real command line in this one process, and one JSON line per block tells how it went. What would take
minutes is made small by further options at the end of the command, after the command as printed was checked in full.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
import traceback
from collections import defaultdict
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

TIME = "2026-01-01_10-00-00"  # the run that pages speak of
EXPORT = f"runs/quickstart/{TIME}/export/knee"  # measured in place of networks of hundreds of millions of parameters
SMALL = (
    "training.images_seen=16",
    "training.batch=8",
    "training.warmup_images=8",
    "evaluation.images=8",
    "sampling.steps=1",
    "stopping.min_peers=2",
    "tracking.mode='off'",
    "workers=1",
)
PICTURES = {"emoji": {"limit": 32}, "scenes": {"pictures": 64, "held_out_pictures": 32}}  # settings of few pictures


def few(dataset):
    """Options of a study of that data set that make it small."""
    settings = [
        "evaluation.images=8",
        "sampling.steps=1",
        "dataset=" + json.dumps({"name": dataset, **PICTURES[dataset]}),
    ]
    return [part for setting in settings for part in ("--set", setting)]


LATER = {  # options that make a verb small; the last one given counts
    "watch": ["--once"],
    "latency": ["--repeats", "1"],
    "replay": ["--shuffles", "3", "--repeats", "1"],
    "supernet train": ["--images", "8", "--set", "training.batch=8"],
    "score": ["--images", "8", "--reference", "{name: scenes, pictures: 64}"],
    "sweep": ["--scales", "1,2", "--repeats", "1"],
    "train": ["--dry-run"],
    "prepare": [
        "--autoencoder",
        "0.001",
        "--judge",
        "0.001",
        "--set",
        "evaluation.images=8",
        "--set",
        "sampling.steps=1",
    ],
    "wandb sync": ["--dry-run"],
    "zero-cost": ["--members", "2", "--workers", "1", *few("emoji")],
    "trust": ["--no-train", "--out", "runs/trust", *few("emoji")],
}


TINY = """
backbone: unet
base:
  levels:
    - { channels: 64, down: [0], up: [0] }
    - { channels: 64, down: [1], up: [1], self_attention: true, cross_attention: true, conv: separable }
axes:
  ffn_ratio: { fields: levels.1.ffn_ratio, choices: [2, 3] }
  attention: { fields: attention, choices: [softmax, relu] }
"""  # what is trained in place of members of mobilediffusion
WHOLE = ("my_curves",)  # studies whose run is replayed, which wants members of their own space
SEVERAL = ("quickstart", "first", "first_random", "my_curves")  # studies of which a front is wanted
RUN: set[str] = set()  # names of the studies that were run


class Failed(Exception):
    """A block that does not do what its page says."""


# --- commands ----------------------------------------------------------------------------------------------------------


def run_command(line):
    """One line of a block of shell, whose output may go to a file."""
    words = shlex.split(line.replace("<time>", TIME), comments=True)
    if words[-2:-1] == [">"]:
        with open(words[-1], "w") as target, redirect_stdout(target):
            return run_command(shlex.join(words[:-2]))
    if words[0] == "nas":
        return run_nas(words[1:])
    if words[0] == "make":
        return shell(["make", "-n", *words[1:]])
    if words[0] == "python" and words[1].endswith("/draw.py"):
        return shell([sys.executable, *words[1:]])
    if words[:3] == [".venv/bin/python", "-m", "pytest"]:
        return run_pytest(words[3:])
    raise Failed(f"no way is known to check {words[0]!r}: run it in tests/docs_driver.py, or say in the page why not")


def shell(words):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{shlex.join(words)}: exit code {done.returncode}: {done.stderr[-500:]}")


def run_nas(words):
    """One command of nas: as it is printed where that is quick, else parsed in full and then made small."""
    from nas.cli import app

    words = ["journal.log" if word.startswith("postgresql://") else word for word in words]
    verb = " ".join(words[:2]) if words[0] in ("supernet", "wandb") else words[0]
    words += LATER.get(verb, [])
    if verb == "supernet train":
        words += few("emoji" if "--study" in words else "scenes")  # pages' own studies have the emoji's parts
    if verb == "prepare" and words[1].endswith("quickstart"):
        words += few("scenes")
    if verb == "run":
        words += made_small(words)
    try:
        app(words, standalone_mode=False)
    except SystemExit as left:
        if left.code:
            raise Failed(f"exit code {left.code}") from None


def made_small(words):
    """What makes a run quick; first the study is loaded and checked as the command names it.

    The first run of a study trains a tiny network or two, further ones end after the checks.
    """
    from nas.settings import study_file
    from nas.space.search_space import SearchSpace
    from nas.trial.checks import check

    given = [words[i + 1] for i, word in enumerate(words) if word in ("--set", "-s")]
    study = study_file.load(Path(words[1]), given)
    if study.name in RUN:
        return ["--dry-run"]
    check.check(study, SearchSpace.load(study.space) if study.space is not None else None)
    if "--dry-run" not in words:
        RUN.add(study.name)
    return [part for setting in smaller(study) for part in ("--set", setting)]


def smaller(study):
    """Settings that make a study quick."""
    import yaml

    small = list(SMALL)
    if study.search:
        small += [f"search.trials={2 if study.name in SEVERAL else 1}"]
        spaces = [study.space] if isinstance(study.space, str) else study.space
        if "mobilediffusion" in spaces:  # of full size, and not what a page is about
            small += ["training.init=scratch", "search.sampler=random"]  # a pool would look at slices of a supernet
            small += ["stopping.rungs=[0.0, 1.0]"] if study.name in WHOLE else ["space=tiny.yaml"]
    else:
        network = json.dumps(yaml.safe_load(TINY)["base"])
        small += ["ablation.repeats=2", f"architecture={network}", *short_levels(study.ablation)]
        small += ["training.init=scratch"] if study.base is None else ["base={training: {images_seen: 16, batch: 8}}"]
    if pictures := PICTURES.get(study.dataset.name):
        small.append("dataset=" + json.dumps({"name": study.dataset.name, **study.dataset.options, **pictures}))
    return small


def small_from_python(run):
    """`nas.run` of a page: its study is checked as it is shown, and trained small."""
    from nas.settings import study_file

    def small(study, overrides=(), **given):
        with study_file.opened(Path(study) if isinstance(study, str) else study, overrides) as (shown, _):
            return run(shown, overrides=smaller(shown), **given)

    return small


def extended(extend, run, trials):
    """`nas.extend` of a page: a run that was to have fewer has one trial, and gets another."""
    assert trials > 2
    return extend(run, trials=2)


def short_levels(ablation):
    """Levels that say themselves how long is trained, made as short as the rest."""
    for factor, settings in ablation.factors.items():
        levels = settings.levels if isinstance(settings.levels, dict) else {}
        for level, sets in levels.items():
            if "training.images_seen" in sets:
                yield f"ablation.factors.{factor}.levels.{level}=" + json.dumps({**sets, "training.images_seen": 16})


def run_pytest(words):
    import pytest

    if code := pytest.main([*words, "-q", "-p", "no:cacheprovider"]):
        raise Failed(f"pytest {shlex.join(words)}: exit code {code}")


# --- files and fragments -----------------------------------------------------------------------------------------------


def write_file(title, code):
    path = Path(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


def load_fragment(code):
    """Keys of a study file that a page shows without the rest: on top of a committed study's, they must load. Or a recipe."""
    import yaml

    from nas.full_training import recipe
    from nas.settings import study_file

    study = yaml.safe_load(Path("studies/emoji/study.yaml").read_text())
    fragment = yaml.safe_load(code)
    if not isinstance(fragment, dict):
        raise Failed(f"expected keys of a study file, got {code!r}")
    if "stages" in fragment:
        write_file("recipe.yaml", code)
        return recipe.load(Path("recipe.yaml"), (), "emoji")
    study |= fragment
    if "ablation" in fragment:
        del study["search"]
    write_file("studies/fragment/study.yaml", yaml.safe_dump(study))
    study_file.load(Path("studies/fragment"))


def apply_patch(code):
    done = subprocess.run(["patch", "-p1", "--forward", "--fuzz=0"], input=code, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"the change does not apply: {done.stdout}{done.stderr}")


def write(block):
    """What the page says the clone is to hold: a file, or a change to one."""
    (apply_patch if block.language == "diff" else partial(write_file, block.title))(block.code)


def do(block, names):
    """One block, in the folder; `names` are what the page's earlier blocks of Python defined."""
    if block.language in ("sh", "") and block.commands:
        for line in block.commands:
            run_command(line)
    elif block.language == "":  # README.md: keys of a study file, or words
        if re.match(r"[a-z_]+: ", block.code):
            load_fragment(block.code)
    elif block.language == "yaml":
        load_fragment(block.code)
    elif block.language == "python":
        exec(compile(block.code, block.name, "exec"), names)
    elif block.language != "text":
        raise Failed(f"a block in {block.language!r}; expected sh, yaml, python, diff or text, or a title")
    elif any(re.match(r"\$? *nas ", line) for line in block.code.splitlines()):
        raise Failed("a command in a block of text, where no test sees it")


# --- the whole documentation --------------------------------------------------------------------------------------------


def own_pictures(folder):
    """The reader's own: as many pictures as a study draws captions of, with their captions in a table, and as they are read."""
    from PIL import Image

    folder.mkdir()
    lines, read = ["file,caption"], []
    for number in range(300):
        Image.new("RGB", (70, 64), (10 * number % 256, 90, 8 * number % 256)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,a plain picture {number}")
        read.append(json.dumps({"file_name": f"{number}.png", "text": f"a plain picture {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(read) + "\n")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def shards(folder, pictures):
    """What img2dataset would have written: a hundred small shards, all of one content."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(8):
            tar.add(pictures / f"{number}.png", f"{number}.png")
            text = f"a plain picture {number}".encode()
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    for number in range(1, 100):
        shutil.copy(folder / "00000.tar", folder / f"{number:05}.tar")


def pretrained_autoencoder(folder):
    """What a recipe of the docs names, with few weights."""
    from diffusers import AutoencoderKL

    down, up = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=[4] * 4, layers_per_block=1, norm_num_groups=2
    ).save_pretrained(folder)


def prepare():
    """What pages take for granted: finished runs of a search and of an ablation, an export, and one that was trained on."""
    from nas.analysis.statistics import agreement
    from nas.cli import app
    from nas.settings import study_file
    from nas.trust.anchor_table import AnchorTable

    for study, likes in (("quickstart", ["random"]), ("my_ablation", ["ffn_ratio", "ufogen_lora"])):
        run_nas(["run", f"studies/{study}"])
        (found,) = Path(f"runs/{study}").iterdir()
        found.rename(found.with_name(TIME))
        for like in likes:
            shutil.copytree(f"runs/{study}", f"runs/{like}", symlinks=True)
    run_nas(["export", "runs/quickstart"])
    pretrained_autoencoder("sd-vae-folder")
    own = (
        "conditioning: {encoder: open_clip}\nautoencoder: kl\n"  # for captions that the quickstart's words do not reach
    )
    write_file("recipe.yaml", own + "stages: [{image_size: 64, images: 8, batch: 8}]\n")
    data = json.dumps({"name": "emoji", **PICTURES["emoji"]})  # every picture is encoded before the first update
    app(["train", EXPORT, "--data", data, "--recipe", "recipe.yaml"], standalone_mode=False)
    shutil.copytree("studies/proxy_trust", "runs/trust")
    table = AnchorTable(Path("runs/trust"))  # as if measured with few pictures
    small = study_file.load(Path("studies/emoji"), few("emoji")[1::2])
    table.begin(agreement.proxy_settings(small.resolved()), table.architectures())


def tell(name, began, error=""):
    print(json.dumps({"block": name, "seconds": round(time.process_time() - began, 2), "error": error}), file=REPORT)
    REPORT.flush()


def attempt(name, function, *given):
    began, error = time.process_time(), ""
    try:
        function(*given)
    except Exception as failure:
        lines = traceback.format_exception(failure)
        error = f"{type(failure).__name__}: {failure}" + (
            "" if isinstance(failure, Failed) else "\n" + "".join(lines[-4:])
        )
    tell(name, began, error)
    return not error


def main():
    """Files first, as nothing of nas is imported yet; then commands and programs, page by page."""
    from docs_pages import blocks, examples, pages

    told = [block for page in map(blocks, pages()) for block in page if not block.not_run]
    own_pictures(Path("my-pictures"))
    shards(Path("laion"), Path("my-pictures"))
    for block in told:
        if block.title or block.language == "diff":
            attempt(block.name, write, block)
    write_file("tiny.yaml", TINY)
    from docs_quick import stay_in_this_process

    stay_in_this_process(EXPORT, Path(sys.argv[2]))
    import nas

    nas.run, nas.extend = small_from_python(nas.run), partial(extended, nas.extend)
    if not attempt("prepare", prepare):
        return
    names = defaultdict(lambda: {"__name__": "__main__"})
    for block in [*told, *examples()]:
        if not block.title and block.language != "diff":
            attempt(block.name, do, block, names[block.page])


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    REPORT = open("report.jsonl", "w", encoding="utf-8")  # noqa: SIM115 (open until the end)
    main()
