"""The machine and the installed packages, for tables of seconds and reports of faults. The standard library alone."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nemo_codert

NEEDED = ("nemo_toolkit", "torch", "lightning", "omegaconf", "hydra-core", "numba", "numba-cuda", "numpy", "lhotse")
NEEDED += ("sentencepiece", "kaldialign", "soundfile", "soxr")
OPTIONAL = ("onnxruntime", "sherpa-onnx", "espeakng-loader", "matplotlib", "jinja2", "gradio", "wandb")
OPTIONAL += ("tensorboard", "huggingface_hub")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "NUMBA_DISABLE_JIT")
CUDA_STATE = """
import torch
found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA")
print(", ".join(f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in found) or "none")
"""


def processor() -> str:
    """Return the name of the processor, or of its architecture where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str, otherwise: str = "not installed") -> str:
    """Return the installed version of a package, or `otherwise`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return otherwise


def environment() -> dict[str, str]:
    """Collect what a report of a fault needs: versions, processor, memory, GPU. No path, no name of user or host.

    Returns:
        Name -> text, in the order in which it is shown.

    Example:
        >>> environment()["nemo_codert"] == nemo_codert.__version__
        True
    """
    cuda, gpus = _cuda_state()
    found = {
        "nemo_codert": nemo_codert.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": _memory(),
        "gpu": gpus,
        "cuda of torch": cuda,
    }
    found |= {package: installed(package) for package in (*NEEDED, *OPTIONAL)}
    return found | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (AttributeError, OSError, ValueError):
        return "unknown"


def _cuda_state() -> tuple[str, str]:
    """Return what torch was built for, and the GPUs that torch finds; a process of its own, which may crash."""
    done = subprocess.run([sys.executable, "-c", CUDA_STATE], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != 2:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        return f"torch cannot be imported: {reason}", "unknown"
    return lines[0], lines[1]
