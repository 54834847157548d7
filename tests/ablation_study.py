"""A tiny ablation as a study file: two factors, two levels each, two repeats."""

from nas.settings import study_file

STUDY = """
name: small
architecture: mobilediffusion
dataset: {name: emoji, limit: 96}
proxy: {width_divisor: 16}
training: {images_seen: 32, batch: 16}
sampling: {steps: 2, guidance: 1.0}
evaluation: {images: 8}
metrics: [clip_score]
ablation:
  design: factorial
  factors:
    ratio: {field: architecture.levels.*.ffn_ratio, levels: [2, 3]}
    pace:
      levels:
        slow: {training.learning_rate: 1.0e-4}
        fast: {training.learning_rate: 1.0e-3, sampling.steps: 1}
  minimise: [denoising_loss]
  maximise: [clip_score]
  repeats: 2
stopping: {rungs: [1.0]}
tracking: {mode: "off"}
workers: 1
"""


def loaded(tmp_path, *overrides, text=STUDY):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return study_file.load(path, overrides)
