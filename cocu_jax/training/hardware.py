"""Peak figures of accelerators, for utilisation and rooflines."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one JAX device, from the vendors' data sheets.

    Attributes:
        flops: FLOP/s of bf16 matrix products, without sparsity.
        bandwidth: memory bandwidth, bytes/s.
        memory: bytes.
        link: bandwidth of all links to other chips of the slice together, in one direction,
            bytes/s; 0 if unknown.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float = 0.0


# By `device_kind`. JAX shows a v4 or v5p chip as one device (megacore), a TPU7x chip as two.
CHIPS = {
    "TPU v4": Chip(275e12, 1.2e12, 32e9, 300e9),
    "TPU v5 lite": Chip(197e12, 0.82e12, 16e9, 200e9),
    "TPU v5": Chip(459e12, 2.77e12, 95e9, 600e9),
    "TPU v6 lite": Chip(918e12, 1.64e12, 32e9, 400e9),
    "TPU7x": Chip(1.155e15, 3.7e12, 103e9, 300e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 1.55e12, 40e9),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2.04e12, 80e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3.35e12, 80e9),
    "NVIDIA H100 PCIe": Chip(756e12, 2.04e12, 80e9),
    "NVIDIA H200": Chip(989e12, 4.8e12, 141e9),
    "NVIDIA B200": Chip(2.25e15, 8e12, 180e9),
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`; None if its peaks are not listed, as for a CPU."""
    return CHIPS.get(device_kind)
