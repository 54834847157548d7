"""What a picture costs each family of studies/families, in training and in drawing: python studies/families/costs.py

Multiply-adds of the proxies on latents of 8 x 8 x 8. A training picture costs three passes; of the autoregressor, whose
conditions are made once and denoised four times over, the mean over the share that is hidden.
"""

from pathlib import Path

from nas.networks.backbones import Proxy
from nas.settings import design, study_file

SIDE, TOKENS, WIDTH = 8, 20, 96  # of the latents; tokens of a caption, and their width
HERE = Path(__file__).parent


def main() -> None:
    study = study_file.load(HERE / "study.yaml")
    assert study.ablation is not None
    networks = design.architectures(study)
    print(f"{'family':<20} {'parameters':>10} {'a training picture':>20} {'a drawing':>12}")
    for cell in design.cells(study.ablation):
        proxy = networks[cell.name].scaled(Proxy(16, 8, WIDTH, WIDTH))
        units = proxy.units(SIDE, TOKENS)
        if (parts := units.autoregression) is None:
            pass_ = proxy.cost(SIDE, TOKENS).macs
        else:
            known = range(parts.tokens)
            pass_ = sum(parts.conditions(n) + 4 * parts.denoised(parts.tokens - n) for n in known) // parts.tokens
        drawing = design.changed(study, cell.settings).sampling.macs(units)
        print(
            f"{cell.name:<20} {proxy.cost(SIDE, TOKENS).params:>10,} {3 * pass_ / 1e6:>18.1f} M {drawing / 1e6:>10.1f} M"
        )


if __name__ == "__main__":
    main()
