"""The chain's table: text encoder + calls of the denoiser x its time + decoder, and what is drawn, at every stage.

    python studies/snapfusion/stages.py [FOLDER]

FOLDER (runs/chain unless given) holds the exports, of which those that are there are measured: multiply-adds of a picture by
tracing the three networks, milliseconds of processor time on PyTorch and ONNX Runtime, the stages in turns, medians, and the
scores that `nas export` took. Writes results.csv, a row for each stage and runtime.
"""

import statistics
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from nas.cost.traced import traced
from nas.deploy.speed import latency
from nas.documents.document import Document

STAGES = {
    "base": "the base in 16 steps",
    "evolved": "evolved",
    "evolved_8": "evolved, drawn in 8 steps",
    "distilled": "its steps distilled, 8 of them",
    "small": "and half the decoder",
}
RUNTIMES = ("eager", "onnxruntime")
TURNS, REPEATS = 11, 5
PARTS = ("text_encoder", "denoiser", "decoder")
SCORES = ("prompt_accuracy", "mind_efficientnet_lite0")
TABLE = Path(__file__).with_name("results.csv")


def macs(subject: latency.Subject) -> dict[str, int]:
    """Multiply-adds of one call of each network, and of a picture."""
    found = {f"{graph.name}_macs": traced(graph.module, *graph.random_inputs(1)).macs for graph in subject.graphs}
    whole = found["text_encoder_macs"] + subject.steps * found["denoiser_macs"] + found["decoder_macs"]
    return {**found, "picture_macs": whole}


def times(subjects: dict[str, latency.Subject], runtime: str) -> dict[str, dict[str, float]]:
    """Milliseconds by stage: medians over turns of the medians of each, so that what else the machine does falls on all alike."""
    turns = [
        {name: asdict(latency.measure(subject, runtime, 1, REPEATS)) for name, subject in subjects.items()}
        for _ in range(TURNS)
    ]
    columns = [f"{part}_cpu_ms" for part in (*PARTS, "overall")]
    return {
        name: {column: statistics.median(turn[name][column] for turn in turns) for column in columns}
        for name in subjects
    }


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/chain")
    subjects = {name: latency.subject(str(folder / name), 0, None) for name in STAGES if (folder / name).is_dir()}
    rows = []
    for runtime in RUNTIMES:
        spent = times(subjects, runtime)
        for name, subject in subjects.items():
            scores = Document.read(folder / name / "deploy.yaml").content["scores"]
            row = {"stage": name, "what": STAGES[name], "runtime": runtime, "calls": subject.steps}
            row |= {"decoder": subject.decoder, **macs(subject), **spent[name]}
            rows.append(row | {score: scores[score] for score in SCORES})
    table = pd.DataFrame(rows)
    table.to_csv(TABLE, index=False, float_format="%.6g")
    print(table.drop(columns="what").to_string(index=False))


if __name__ == "__main__":
    main()
