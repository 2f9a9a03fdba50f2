"""Pickles that leave a mark when anything in them is executed, and files that hold them."""

import builtins
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml


class Trap:
    """Unpickling it in full calls a function that makes a file."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.call


def traps(mark: Path) -> dict[str, Trap]:
    """Name -> an object that makes the file `mark` when it is unpickled in full."""
    return {
        "os.system": Trap(os.system, f"touch {mark}"),
        "eval": Trap(builtins.eval, f"open({str(mark)!r}, 'w').close()"),
        "open": Trap(io.open, str(mark), "w"),
        "getattr": Trap(builtins.getattr, Trap(os.open, str(mark), os.O_CREAT), "real"),
        "hydra": Trap(_hydra(), {"_target_": "builtins.open", "file": str(mark), "mode": "w"}),
        "pathlib": Trap(Path.touch, mark),
    }


def _hydra() -> Callable:
    from hydra.utils import instantiate

    return instantiate


def save_trapped(content: dict[str, Any], path: Path, trap: Trap, key: str = "trap") -> Path:
    """A checkpoint with a trap in it."""
    torch.save({**content, key: trap}, path)
    return path


def add_member(archive: tarfile.TarFile, name: str, content: bytes = b"", **attributes: object) -> None:
    """A member with attributes of `tarfile.TarInfo`, whatever these say."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in attributes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content) if content else None)


def members_of(path: Path) -> dict[str, bytes]:
    """Names and contents of the files in an archive."""
    with tarfile.open(path) as archive:
        return {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()}


def rewrite(
    source: Path,
    path: Path,
    config: Callable[[dict], object] | None = None,
    members: Callable[[dict[str, bytes]], object] | None = None,
    extra: Callable[[tarfile.TarFile], object] | None = None,
    mode: str = "w:",
) -> Path:
    """A copy of an archive with its config or members changed in place, or with further members."""
    contents = members_of(source)
    if config:
        cfg = yaml.safe_load(contents["model_config.yaml"])
        config(cfg)
        contents["model_config.yaml"] = yaml.safe_dump(cfg).encode()
    if members:
        members(contents)
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            add_member(archive, f"./{name}", content)
        if extra:
            extra(archive)
    return path


def pickled(content: object) -> bytes:
    """`content` as `torch.save` writes it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def bare_pickle(content: object) -> bytes:
    """`content` as pickle writes it, outside of PyTorch's archive."""
    return pickle.dumps(content, protocol=2)
