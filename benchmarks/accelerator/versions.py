"""What ran: the card, its driver, and the versions of what computed on it."""

import importlib.metadata
import subprocess

import jax
import torch

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "triton")


def card_and_versions() -> dict[str, str]:
    """For the first line of a benchmark."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": str(jax.device_count()),
        "card": _card(),
        "cuda of jax": getattr(device.client, "platform_version", "").replace("\n", " "),
        "cuda of torch": f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        **{name: _version(name) for name in _PACKAGES},
    }


def _card() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return found.stdout.strip().replace("\n", "; ")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
