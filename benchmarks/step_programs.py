"""What a step costs a TPU chip as one program or another that computes the same.

    python -m benchmarks.step_programs --chip v5p --rows 64 [--devices 4] [--largest 20]

Compiles the published step without having the chip (`pip install "jax[tpu]"` brings the compiler)
and prints traffic, memory and the utilisation that the roofline allows: what
`cocu_jax/training/programs.py` chooses by. Activations are kept or computed again; attention is
XLA's or one kernel; of several devices each updates all parameters or its part. `--largest` also
prints what moves most. A program takes minutes of processor time: `--only` takes some of them, by
number.
"""

import argparse
from typing import NamedTuple

import jax

from benchmarks.figures import print_figure, print_line
from cocu_jax.training.ahead_of_time import compile_step_for
from cocu_jax.training.compiled import cost_of
from cocu_jax.training.plan import make_plan
from cocu_jax.training.program_text import moves_of
from cocu_jax.training.slices import parse_slices
from configs import cocu

_SMALLEST = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}


class Program(NamedTuple):
    """One way to compute the step; see the fields of the configs."""

    remat: bool = False
    fused_attention: bool = False
    split_update: bool = False


PROGRAMS = (
    Program(),
    Program(remat=True),
    Program(fused_attention=True),
    Program(remat=True, fused_attention=True),
    Program(remat=True, fused_attention=True, split_update=True),
)


def main() -> None:
    """Prints the figures of every program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", default="v5e", choices=_SMALLEST, help="TPU generation")
    parser.add_argument("--rows", type=int, default=16, help="images on a device")
    parser.add_argument("--devices", type=int, default=1, help="at most those of four chips")
    parser.add_argument("--only", default="", help="numbers of programs, from 0")
    parser.add_argument("--largest", type=int, default=0, help="instructions to print")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    only = [int(number) for number in options.only.split(",") if number]
    for number in only or range(len(PROGRAMS)):
        program = PROGRAMS[number]
        if options.devices > 1 or not program.split_update:
            compile_and_print(program, options)


def compile_and_print(program: Program, options: argparse.Namespace) -> None:
    """Compiles the published step as one program, and prints what it costs a device."""
    target = parse_slices(_SMALLEST[options.chip])
    devices = target.devices()[: options.devices]
    config = cocu.get_config("cc3m_cc12m_yfcc14m")
    config.batch_size, config.tuned = options.rows * len(devices), False
    config.model.remat = program.remat
    config.model.fused_attention = program.fused_attention
    config.mesh.split_update = program.split_update
    plan = make_plan(config, examples=100 * config.batch_size, devices=devices)
    compiled = compile_step_for(plan, config)
    cost = cost_of(compiled)
    times = cost.seconds(target.chip)
    seconds = max(times.values())
    name = f"{options.chip}, {options.rows} rows a device, {len(devices)} devices, {program}"
    print_figure(f"{name}: traffic", cost.traffic / 1e9, "GB", better="lower")
    print_figure(f"{name}: memory", cost.memory / 1e9, "GB", better="lower")
    for bound, value in times.items():
        print_figure(f"{name}: least time by {bound}", value * 1e3, "ms", better="lower")
    utilisation = plan.flops / len(devices) / target.chip.flops / seconds
    print_figure(f"{name}: utilisation at most", 100 * utilisation, "%")
    for move in moves_of(compiled.as_text())[: options.largest]:
        instruction = move.instruction
        print_line(
            {
                "megabytes": round(move.bytes / 1e6, 1),
                "instruction": f"{instruction.operation} {instruction.type[:120]}",
                "source": move.source[-100:],
            }
        )


if __name__ == "__main__":
    main()
