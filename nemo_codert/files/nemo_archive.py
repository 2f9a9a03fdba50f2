"""Checks of a `.nemo` archive before NeMo opens it: `check_archive`, and the connector `CheckedArchive`.

An archive is a tar file of a config, weights and tokenizer files. NeMo's restoring builds the classes and opens the
files that the config names, and skips unsafe members with a log line. Here each of these is refused by name; nothing
is unpacked or built for the check. Configs that come with a checkpoint are checked alike: `check_config`.
May import NeMo.
"""

import gzip
import importlib
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml
from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
MAX_MEMBERS = 1000  # an ASR model has about six
MAX_CONFIG_BYTES = 16 * 2**20  # a config lists every word piece three times: 200 kB for 8192 of them
MAX_NESTING = 64  # blocks within blocks of a config; NeMo's have about 6
MAX_RATIO, FREE_BYTES = 20, 64 * 2**20  # weights hardly compress (1.1 to 2 times); small files may, up to FREE_BYTES

# Blocks that are built, or whose files are opened, when a model is restored.
BUILT = "preprocessor spec_augment encoder decoder joint decoding loss aux_ctc interctc student adapters".split()
WORD_PIECES = ("labels", "vocabulary")  # lists of these names hold word pieces, which may be any text
TOKENIZER_FILES = {"model_path": ".model", "vocab_path": ".txt", "spe_tokenizer_vocab": ".vocab"}
TARGET_KEYS = ("_target_", "target", "cls")
# Packages of the classes that a config may name. NeMo's list also allows functions, some of which write files.
MODELS = ("nemo.collections.asr.models.", "nemo_codert.models.")
PARTS = ("nemo.collections.asr.modules.", "nemo.collections.asr.losses.", "nemo_codert.modules.")
OPTIMISERS = ("torch.optim.", "nemo.core.optim.")
REMEDY = "Take the file from a trusted source, or have it saved again with NeMo"


class CheckedArchive(SaveRestoreConnector):
    """NeMo's connector with a check of the archive first; weights are read as data, whatever the environment sets."""

    def load_config_and_state_dict(
        self,
        calling_cls: type,
        restore_path: str,
        override_config_path: Any = None,
        map_location: torch.device | None = None,
        strict: bool = True,
        return_config: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # Overrides SaveRestoreConnector.load_config_and_state_dict: checks the archive first.
        if self.model_extracted_dir is None:
            check_archive(restore_path, weights=not return_config)
        options = override_config_path, map_location, strict, return_config
        return super().load_config_and_state_dict(calling_cls, restore_path, *options, *args, **kwargs)

    @staticmethod
    def _load_state_dict_from_disk(model_weights: str, map_location: Any = "cpu") -> dict[str, torch.Tensor]:
        # Overrides SaveRestoreConnector._load_state_dict_from_disk: ignores TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD.
        return torch.load(model_weights, map_location=map_location, weights_only=True)


def check_archive(path: str | Path, *, weights: bool = True) -> None:
    """Refuse a `.nemo` file that holds anything but a model.

    weights: False where only the config will be read: weights may be missing.

    Raises:
        ValueError: one error that lists what is wrong: members outside the folder, links, devices, sparse or double
            members, more than a disk holds, a config that names code, files or the environment.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        with _opened(path) as archive:
            members = _members(archive)
            problems = list(_member_problems(members, path, (CONFIG, WEIGHTS) if weights else (CONFIG,)))
            if not problems:
                config = read_config(_content(archive, members[CONFIG]))
                config = config.get("model", config)  # NeMo's rule, too
                problems = list(config_problems(config, members=set(members)))
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, MemoryError, OverflowError, _TooLarge) as error:
        problems = [str(error) or "it is not a tar file"]
    except (yaml.YAMLError, ValueError) as error:  # ValueError: numbers and text that Python refuses
        problems = [f"{CONFIG} is not plain YAML: {' '.join(str(error).split())[:200]}"]
    if problems:
        raise ValueError(f"{path} is not an archive that can be opened safely:\n  - " + "\n  - ".join(problems))


def check_config(config: Mapping[str, Any], what: str) -> None:
    """Refuse a model's config that came with a checkpoint and names code, files or the environment.

    Raises:
        ValueError: one error that lists what is wrong.
    """
    if problems := list(config_problems(config)):
        raise ValueError(f"{what} has a config that cannot be used safely:\n  - " + "\n  - ".join(problems))


# ---- the archive ----------------------------------------------------------------------------------------------------


class _TooLarge(ValueError):
    pass


class _Bounded(io.RawIOBase):
    """A decompressed stream that raises when it gets longer than `limit`."""

    def __init__(self, stream: gzip.GzipFile, limit: int) -> None:
        self.stream, self.limit = stream, limit

    def read(self, size: int = -1) -> bytes:
        # Overrides RawIOBase.read.
        data = self.stream.read(min(size, self.limit + 1) if size >= 0 else self.limit + 1)
        self._check()
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        # Overrides RawIOBase.seek.
        position = self.stream.seek(min(offset, self.limit + 1), whence)
        self._check()
        return position

    def tell(self) -> int:
        # Overrides RawIOBase.tell.
        return self.stream.tell()

    def _check(self) -> None:
        if self.stream.tell() > self.limit:
            raise _TooLarge(f"it unpacks to more than {_megabytes(self.limit)}, {MAX_RATIO} times its size")


def _limit(path: Path) -> int:
    return max(FREE_BYTES, MAX_RATIO * path.stat().st_size)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open the archive as NeMo does: a plain tar file, or one compressed by gzip, which older versions wrote."""
    with path.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            with gzip.GzipFile(fileobj=file) as stream:
                bounded = _Bounded(stream, _limit(path))
                with tarfile.open(fileobj=bounded, mode="r:") as archive:
                    yield archive
        else:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                yield archive


def _members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Return the members by their names in the folder; raises for too many members and for two files of one name."""
    found: dict[str, tarfile.TarInfo] = {}
    for number, member in enumerate(archive):
        if number >= MAX_MEMBERS:
            raise _TooLarge(f"it has more than {MAX_MEMBERS} members")
        name = str(PurePosixPath(member.name))
        if name in found and not member.isdir():
            raise tarfile.TarError(f"it has two members {name!r}")
        found[name] = member
    return found


def _member_problems(members: dict[str, tarfile.TarInfo], path: Path, needed: Sequence[str]) -> Iterator[str]:
    for name, member in members.items():
        parts = PurePosixPath(member.name)
        if parts.is_absolute() or ".." in parts.parts:
            yield f"member {member.name!r} lies outside the folder"
        elif member.issym() or member.islnk():
            yield f"member {member.name!r} is a link to {member.linkname!r}"
        elif not (member.isreg() or member.isdir()):
            yield f"member {member.name!r} is neither file nor folder (a device, a pipe)"
        elif member.issparse() or any("sparse" in key.lower() for key in member.pax_headers):
            yield f"member {member.name!r} is sparse: it would unpack to {_megabytes(member.size)}"
        elif parts.name == CONFIG and name != CONFIG:
            yield f"member {member.name!r} is a second {CONFIG}"
    for name in needed:
        if name not in members or not members[name].isreg():
            yield f"the archive has no {name}"
        elif name == CONFIG and members[name].size > MAX_CONFIG_BYTES:
            yield f"{CONFIG} has {_megabytes(members[name].size)}, at most {_megabytes(MAX_CONFIG_BYTES)} are read"
    total, folder = sum(max(member.size, 0) for member in members.values()), Path(tempfile.gettempdir())
    if total > _limit(path):
        yield f"it unpacks to {_megabytes(total)}, more than {MAX_RATIO} times its size"
    elif total > (free := shutil.disk_usage(folder).free):
        yield (
            f"it unpacks to {_megabytes(total)}, but {folder} has {_megabytes(free)} left: free some space or set "
            "TMPDIR to a folder with more"
        )


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    return file.read(MAX_CONFIG_BYTES).decode("utf-8")


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


# ---- the config -----------------------------------------------------------------------------------------------------


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Loader of safe YAML; in C, where PyYAML has it, because a config can list a hundred thousand word pieces."""


for _kind in ("Path", "PosixPath", "WindowsPath"):  # OmegaConf reads these as paths, too
    _PlainLoader.add_constructor(
        f"tag:yaml.org,2002:python/object/apply:pathlib.{_kind}",
        lambda loader, node: "/".join(map(str, loader.construct_sequence(node))),
    )


def read_config(text: str) -> dict[str, Any]:
    """Read a config as plain dicts and lists.

    Raises:
        yaml.YAMLError: invalid YAML, a tag that would build an object, an alias, blocks too deep, or not a mapping.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_PlainLoader):
        if isinstance(event, yaml.AliasEvent):  # a few aliases can stand for billions of nodes
            raise yaml.YAMLError(f"it has an alias (*{event.anchor}), which NeMo does not write")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_NESTING:
            raise yaml.YAMLError(f"blocks are nested more than {MAX_NESTING} deep")
    config = yaml.load(text, Loader=_PlainLoader)
    if not isinstance(config, dict):
        raise yaml.YAMLError(f"it holds a {type(config).__name__}, wanted a mapping")
    return config


def config_problems(config: Any, *, members: set[str] | None = None) -> Iterator[str]:
    """Yield the entries of a model's config that name code or files which restoring it must not touch.

    members: names in the config's archive; None for the config of a checkpoint, whose tokenizer is a folder here.
    """
    if not isinstance(config, Mapping):
        yield f"the config holds a {type(config).__name__}, wanted a mapping"
        return
    for path, value in _leaves(config):
        if not isinstance(value, str):
            continue
        if "${" in value:
            yield f"{path} is {_short(value)}, which is not resolved: it could read the environment. {REMEDY}"
        elif _is_target(path, value) and (problem := target_problem(value, is_model="." not in path)):
            yield f"{path} is {_short(value)}: {problem}. {REMEDY}"
        elif _names_a_place(value) and path.split(".")[0].split("[")[0] in BUILT and path != "student.init_from":
            yield f"{path} is {_short(value)}, a file or address that restoring the model would open. {REMEDY}"
    tokenizer = config.get("tokenizer")
    if isinstance(tokenizer, Mapping):
        yield from _tokenizer_problems(tokenizer, "tokenizer", members)
        languages = tokenizer.get("langs")
        for name, block in languages.items() if isinstance(languages, Mapping) else ():
            if isinstance(block, Mapping):
                yield from _tokenizer_problems(block, f"tokenizer.langs.{name}", members)


def _leaves(node: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield key path and value of each leaf of a config; keys with an interpolation, too, as values of their block."""
    if depth > MAX_NESTING:
        raise ValueError(f"blocks are nested more than {MAX_NESTING} deep")
    if isinstance(node, Mapping):
        for key, value in node.items():
            if isinstance(key, str) and "${" in key:
                yield path or "the config", key
            yield from _leaves(value, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(node, list | tuple):
        if path.rsplit(".", 1)[-1] not in WORD_PIECES:
            for i, value in enumerate(node):
                yield from _leaves(value, f"{path}[{i}]", depth + 1)
        else:
            yield from ((f"{path}[{i}]", value) for i, value in enumerate(node) if "${" in str(value))
    else:
        yield path, node


def _is_target(path: str, value: str) -> bool:
    """Return whether a value is a class to be built; keys named `target` and `cls` may also have another meaning."""
    key = path.rsplit(".", 1)[-1]
    return key == "_target_" or (key in TARGET_KEYS and ("." in value or path == key))


def _names_a_place(value: str) -> bool:
    return "/" in value or "\\" in value or value.startswith("~")


def _short(value: str) -> str:
    return repr(value if len(value) <= 100 else value[:100] + "...")


def target_problem(target: str, *, is_model: bool = False) -> str | None:
    """Return the fault of a target, None for a network, a loss or an optimiser of the allowed packages.

    is_model: the target is that of the whole config, which is a model.
    """
    wanted: dict[tuple[str, ...], Callable[[type], bool]] = {PARTS: _is_network, OPTIMISERS: _is_optimiser}
    if is_model:
        wanted = {MODELS: _is_model}
    for prefixes, is_kind in wanted.items():
        if target.startswith(prefixes):
            found = _located(target)
            # The class's own module must match too: a name can lead through one module into another.
            known = isinstance(found, type) and found.__module__.startswith(prefixes) and is_kind(found)
            return None if known else f"no {'model' if is_model else 'network, loss or optimiser'} of that name"
    return f"wanted a class of {', '.join(prefix.rstrip('.') for prefixes in wanted for prefix in prefixes)}"


def _located(target: str) -> Any:
    """Return the object at a dotted path of plain names, None if there is none."""
    if not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", target):
        return None
    module, name = target.rsplit(".", 1)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    while hasattr(found, "__wrapped__"):  # NeMo's marks of experimental classes
        found = found.__wrapped__
    return found


def _is_network(found: type) -> bool:
    return issubclass(found, torch.nn.Module)


def _is_optimiser(found: type) -> bool:
    return issubclass(found, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler)


def _is_model(found: type) -> bool:
    from nemo.core.classes import ModelPT

    return issubclass(found, ModelPT)


def _tokenizer_problems(block: Mapping[str, Any], path: str, members: set[str] | None) -> Iterator[str]:
    """Yield tokenizer files that are not members of the archive, or for a checkpoint, lack a tokenizer's suffix."""
    for key, suffix in TOKENIZER_FILES.items():
        value = block.get(key)
        if value is None or value == "":
            continue
        if members is None:
            if not str(value).endswith(suffix):
                yield f"{path}.{key} is {_short(str(value))}, wanted a file {suffix}"
            continue
        name = str(value).removeprefix("nemo:")
        if str(value).startswith("nemo:"):
            if name not in members:
                yield f"{path}.{key} is {_short(str(value))}, which the archive does not hold"
        elif Path(name).exists() or PurePosixPath(name).name not in members:
            yield f"{path}.{key} is {_short(str(value))}, a file of this machine and not of the archive. {REMEDY}"
    folder = block.get("dir")
    if members is not None and block.get("model_path") is None and folder and Path(str(folder)).exists():
        yield f"{path}.dir is {_short(str(folder))}, a folder of this machine: the archive names no model_path"
