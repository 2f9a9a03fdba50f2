"""Lightning checkpoints as data: reading them, and making them readable, without executing anything in them.

A `.ckpt` is a pickle. PyTorch's weights-only reader builds tensors, numbers, strings and containers of them and
refuses whatever else a pickle may name. NeMo's own checkpoints also hold OmegaConf objects: empty stand-ins are built
in their place, and the values are taken out of these, so that OmegaConf's code does not run on untrusted data.
May import torch, numpy and omegaconf only.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from omegaconf import OmegaConf

NODES = "AnyNode BooleanNode BytesNode FloatNode IntegerNode InterpolationResultNode PathNode StringNode UnionNode"
# Names allowed in a checkpoint besides PyTorch's own list: OmegaConf's containers, and the names in their state.
STAND_INS = (
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.UnionNode"),
    *(f"omegaconf.nodes.{name}" for name in NODES.split()),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.base.SCMode"),
    *("typing.Any", "typing.Dict", "typing.List", "typing.Union", "collections.defaultdict"),
    *(f"builtins.{name}" for name in ("dict", "list", "str", "int", "float", "bool", "bytes", "object")),
)
MAX_DEPTH = 200  # levels of nested containers; files that training writes have about 10


class RefusedCheckpoint(ValueError):
    """A file that is not a checkpoint, is torn, or names anything but data; nothing in the file was executed."""


class StandIn:
    """An object of another library as described in a checkpoint: the state without the behaviour."""

    def __new__(cls, *arguments: object) -> "StandIn":
        # Overrides object.__new__: the arguments in the pickle are ignored.
        node = super().__new__(cls)
        node.state = {}
        return node

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        # Overrides object.__setstate__: the state is kept unchanged.
        self.state = state if isinstance(state, dict) else {}


def read_checkpoint(
    path: str | Path | IO[bytes],
    map_location: str | torch.device | Callable | dict | None = "cpu",
    *,
    mmap: bool = False,
) -> dict[str, Any]:
    """Read a checkpoint, with OmegaConf objects as dicts and lists.

    Args:
        path: the file. map_location, mmap: as in `torch.load`.

    Raises:
        FileNotFoundError: no such file.
        RefusedCheckpoint: a torn file, no checkpoint, or one that names anything but data.
    """
    if isinstance(path, str | Path) and not Path(path).is_file():
        raise FileNotFoundError(f"Checkpoint file not found: {path}")
    name = path if isinstance(path, str | Path) else "the checkpoint"
    try:
        with torch.serialization.safe_globals([(StandIn, full_name) for full_name in STAND_INS]):
            # An explicit weights_only is not undone by TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        content = plain(content)
    except Exception as error:
        raise RefusedCheckpoint(f"{name} {_reason(error)}") from error
    if not isinstance(content, dict):
        raise RefusedCheckpoint(f"{name} is not a Lightning checkpoint: got a {type(content).__name__}, want a dict")
    return content


def _reason(error: Exception) -> str:
    """Return the fault of a checkpoint that could not be read, and the remedy."""
    text = " ".join(str(error).split())
    if found := re.search(r"GLOBAL (\S+)", text) or re.search(
        r"allowlisted via `add_safe_globals`,? but got (.+)", text
    ):
        name = next(filter(None, found.groups()))
        return (
            f"names {name}, which is not data: it was refused and nothing of the file was executed. Take a "
            "checkpoint that training with nemo_codert left, or let its owner save it again with plain values"
        )
    if isinstance(error, PermissionError | IsADirectoryError):
        return f"cannot be read: {error.strerror or text}. Give a file that can be read"
    return f"is not a Lightning checkpoint, or was torn while it was written ({text[:160]}). Give the one before it"


def plain(value: Any, *, configs: bool = True, depth: int = 0) -> Any:
    """Convert OmegaConf objects to dicts and lists, paths to text and NumPy's scalars to Python's.

    A dict, list or tuple in which nothing changes is returned as it is; others are copied.

    Args:
        configs: False leaves OmegaConf objects as they are: NeMo's own `load_from_checkpoint` needs them.

    Raises:
        ValueError: nested more than MAX_DEPTH deep, such as a container that holds itself.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"containers are nested more than {MAX_DEPTH} deep")

    def inner(item: Any) -> Any:
        return plain(item, configs=configs, depth=depth + 1)

    if isinstance(value, StandIn):
        return inner(value.state.get("_content", value.state.get("_val")))
    if value is StandIn:  # Lightning also keeps a config's class
        return None
    if configs and OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=False)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict) and not isinstance(value, OrderedDict):  # a state dict stays one
        made = {inner(key): inner(item) for key, item in value.items()}
        is_same = type(value) is dict and all(a is b for a, b in zip(made.values(), value.values(), strict=True))
        return value if is_same and all(a is b for a, b in zip(made, value, strict=True)) else made
    if type(value) in (list, tuple):
        made = [inner(item) for item in value]
        return value if all(a is b for a, b in zip(made, value, strict=True)) else type(value)(made)
    return value


def unreadable_names(path: str | Path) -> list[str]:
    """List the names in a checkpoint that `read_checkpoint` would refuse; reads the pickle only, not the tensors."""
    return sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - set(STAND_INS))
