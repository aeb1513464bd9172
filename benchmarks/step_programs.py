"""What a step costs a TPU chip with activations recomputed or kept, attention fused or not.

    python -m benchmarks.step_programs --chip v5e --rows 16

Compiles the published step for one chip without having it (`pip install "jax[tpu]"` brings the
compiler) and prints traffic and the utilisation that the roofline allows: what
`cocu_jax/training/programs.py` chooses by. A program takes minutes of processor time.
"""

import argparse
import itertools

import jax

from benchmarks.figures import print_figure
from cocu_jax.training.ahead_of_time import compile_step_for
from cocu_jax.training.compiled import cost_of
from cocu_jax.training.plan import make_plan
from cocu_jax.training.slices import parse_slices
from configs import cocu

_SMALLEST = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def main() -> None:
    """Prints the figures of every program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", default="v5e", choices=_SMALLEST, help="TPU generation")
    parser.add_argument("--rows", type=int, default=16, help="images on the chip")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    target = parse_slices(_SMALLEST[options.chip])
    device = target.devices()[:1]
    for remat, fused in itertools.product((False, True), repeat=2):
        config = cocu.get_config("cc3m_cc12m_yfcc14m")
        config.batch_size, config.tuned = options.rows, False
        config.model.remat, config.model.fused_attention = remat, fused
        plan = make_plan(config, examples=100 * options.rows, devices=device)
        cost = cost_of(compile_step_for(plan, config))
        seconds = max(cost.seconds(target.chip).values())
        name = f"{options.chip}, {options.rows} rows, {'recomputed' if remat else 'kept'}"
        name += ", attention fused" if fused else ""
        print_figure(f"{name}: traffic", cost.traffic / 1e9, "GB", better="lower")
        print_figure(f"{name}: memory", cost.memory / 1e9, "GB", better="lower")
        print_figure(f"{name}: roofline", seconds * 1e3, "ms", better="lower")
        utilisation = plan.flops / target.chip.flops / seconds
        print_figure(f"{name}: utilisation at most", 100 * utilisation, "%")


if __name__ == "__main__":
    main()
