"""What a test of the documentation has no time for, made quick: worker processes, servers, conversions, trainings."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

QUICKER = {"gp": "nsga2"}  # samplers, when curves are replayed


def stay_in_this_process(export, conversions):
    """Trials are computed here, by the functions that a worker process would run. `conversions`: `converted.once`'s folder."""
    import converted
    import torch
    from at_once import InProcess

    import nas.deploy.serve
    import nas.interruption
    import nas.judging.page
    import nas.report.live.dashboard
    import nas.report.wandb.sync
    import nas.study.run
    import nas.trial.checks.check
    import nas.trust.anchors
    import nas.workers.preload
    from nas.analysis.statistics import agreement
    from nas.decoder_distillation import job, measures
    from nas.deploy import drawer
    from nas.deploy.exporters import onnx
    from nas.deploy.speed import block_latency, latency
    from nas.metrics import fid
    from nas.networks import conditioning
    from nas.networks.conditioning import clip
    from nas.preparation import supernet
    from nas.runs import description
    from nas.schedules import search
    from nas.settings import study_file
    from nas.space import published
    from nas.study import sweep
    from nas.trial import supernet_training
    from nas.trust.replay import command as replay

    nas.study.run.Workers = nas.trust.anchors.Workers = InProcess
    nas.trial.checks.check.PROBES, supernet_training.POOL, agreement.RESAMPLES = 100, 4, 50
    onnx.write = converted.once(onnx.write, conversions)
    torch.export.load = read_once(torch.export.load)
    supernet_training.train = trained_small(supernet_training.train)
    supernet.make = lambda part, *rest: shutil.copy("nas/assets/supernet_mobilediffusion.safetensors", part.path)
    nas.trust.anchors.run = once(nas.trust.anchors.run, lambda study, overrides, *_: study_file.load(study, overrides))
    sweep.sweep = once(sweep.sweep, lambda *_: None)
    explore = replay.explore
    replay.explore = lambda table, about, sampler, *rest: explore(table, about, QUICKER.get(sampler, sampler), *rest)
    scheduled = search.run

    def small_search(subject, asked, *rest):
        vars(subject)["plan"] = subject.plan.changed(steps=2)  # the quick runs are drawn in one
        return scheduled(subject, replace(asked, evaluations=1, images=2, keep=2), *rest)

    search.run = small_search
    measures.REPEATS, measures.RUNTIMES, decoders = 1, ("eager",), job.run

    def small_decoders(made, say):
        vars(made.asked)["recipe"] = replace(made.asked.recipe, images_seen=16)
        vars(made.asked)["latents"] = 16
        return decoders(made, say)

    job.run = small_decoders
    for module, name in ((clip, "load"), (conditioning, "load"), (fid, "EfficientNet")):
        setattr(module, name, cache(getattr(module, name)))  # the same frozen weights, study after study
    nas.workers.preload.start = nas.interruption.install_in_coordinator = lambda: None
    nas.report.live.dashboard.serve = lambda run, port: description.find(run)
    nas.judging.page.serve = answered
    nas.deploy.serve.serve = lambda folder, *rest: drawer.read(folder)
    nas.report.wandb.sync.target = lambda run, *rest: run  # runs of this test are not tracked
    nas.report.wandb.sync.specification = lambda run: {"run": str(run)}
    every, subject = block_latency.of_space, latency.subject
    block_latency.of_space = lambda *given: every(*given)[:2]

    def small_subject(what, *how):
        if not Path(what).is_dir():
            published.architecture(what)
            what = export
        return subject(what, *how)

    latency.subject = small_subject


def answered(session, *rest):
    """`nas.judging.page.serve` until a judge has pressed a few keys."""
    for _ in range(3):
        question = session.question()
        if "left" not in question:  # all is answered
            return
        assert session.answer(question["number"], "left", 1.0)


def read_once(load):
    """`torch.export.load`, which takes seconds a graph: the same file again is the program that was read."""
    kept = {}

    def again(file):
        key = (Path(file).resolve(), Path(file).stat().st_mtime_ns)
        if key not in kept:
            kept[key] = load(file)
        return kept[key]

    return again


def trained_small(train):
    """`nas.trial.supernet_training.train` of a tiny space; the file of a shipped space is the shipped one."""

    def small(study, space, recipe, out, *rest):
        from nas.space.search_space import SearchSpace

        quality = train(study, SearchSpace.load("tiny.yaml"), recipe, out.with_name(f"tiny_{out.name}"), *rest)
        shutil.copy(f"nas/assets/supernet_{space.name}.safetensors", out)
        return quality

    return small


def once(function, check):
    """What is dear is done for the first command that asks for it; of further ones `check` gets what they gave."""
    found = []

    def again(*given):
        if found:
            check(*given)
        else:
            found.append(function(*given))
        return found[0]

    return again
