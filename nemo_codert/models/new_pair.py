"""The config of a pair, written from a trained model's file: the model becomes the teacher of a smaller student.

What is not the teacher's own (data, optimiser, trainer, run folder) is inherited from the shipped `base.yaml`.
"""

import copy
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from nemo.collections.asr.models import EncDecRNNTBPEModel, EncDecRNNTModel
from omegaconf import OmegaConf

from nemo_codert.config.shipped import shipped_configs
from nemo_codert.config.tdt import TDT_LOSSES, is_tdt
from nemo_codert.files.atomic import whole_new_folder
from nemo_codert.models.encoder_sizes import scaled_encoder
from nemo_codert.models.open_model import open_model
from nemo_codert.models.stock_config import DURATION_KEYS, student_config
from nemo_codert.models.stock_models import write_tokenizer

STRATEGY = "static"  # strategy of the config that is written: the teacher stays as it is
DEFAULT_SHARE = Fraction(1, 8)
TOKENIZER = "tokenizer"  # folder beside the YAML file
# Keys of networks that NeMo fills in from the tokenizer and from the other networks.
FILLED_IN = ("vocab_size", "num_classes", "vocabulary", "encoder_hidden")
# Defaults of the keys of base.yaml that lie one block deeper than a class's arguments.
INNER_DEFAULTS = {"prednet": {"t_max": None, "dropout": 0.0}, "jointnet": {"dropout": 0.0}}


@dataclass(frozen=True)
class NewPair:
    """A written config.

    Attributes:
        path: the YAML file.
        tokenizer: the tokenizer's folder.
        kind: class of the teacher's model.
        teacher, student: parameters of all networks of a branch, as built.
        teacher_encoder, student_encoder: parameters of the encoders.
        encoder: config of the student's encoder.
    """

    path: Path
    tokenizer: Path
    kind: str
    teacher: int
    student: int
    teacher_encoder: int
    student_encoder: int
    encoder: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Parameters of the student's encoder, as a share of the teacher's."""
        return self.student_encoder / self.teacher_encoder

    def summary(self) -> str:
        """Return two lines with the sizes of teacher and student."""
        layers = ", ".join(f"{key} {self.encoder[key]}" for key in ("n_layers", "d_model") if key in self.encoder)
        return (
            f"teacher  {self.teacher:>13,} parameters, encoder {self.teacher_encoder:>13,}  ({self.kind})\n"
            f"student  {self.student:>13,} parameters, encoder {self.student_encoder:>13,}  "
            f"(1/{1 / self.ratio:.1f} of the teacher's: {layers})"
        )


def new_pair(
    teacher: str | Path, output: str | Path, *, share: float | Fraction = DEFAULT_SHARE, name: str = "pair"
) -> NewPair:
    """Write the config of a pair whose teacher is a trained model, and the model's tokenizer.

    `output` gets `NAME.yaml` and the folder `tokenizer`, both or neither. The config inherits from the shipped `base`
    and chooses `strategy: static`; the manifests and the run's folder are left to the command line.

    Args:
        teacher: `.nemo` file or pretrained name of an RNN-T, a hybrid RNN-T/CTC or a TDT model with a SentencePiece
            tokenizer.
        output: a folder that does not exist or is empty.
        share: parameters of the student's encoder as a share of the teacher's: above 0, at most 1.
        name: of the config.

    Returns:
        The files, and the sizes of both models as built.

    Raises:
        ValueError: a model that cannot be a teacher, a name or share that cannot be used, or a folder that is not
            empty. Nothing is written.

    Example:
        >>> new_pair("teacher.ckpt", "my_pair", share=2)
        Traceback (most recent call last):
        ...
        ValueError: size is 2, wanted a share of the teacher's encoder above 0 and at most 1, such as 1/8
    """
    output = Path(output).absolute()
    _check_request(teacher, output, share, name)
    what = f"the teacher {str(teacher)!r}"
    model = open_model(teacher, what)
    source = str(Path(teacher).absolute()) if Path(teacher).is_file() else str(teacher)
    try:
        section = _model_section(model, source, output / TOKENIZER, share)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    with whole_new_folder(output) as folder:
        (folder / TOKENIZER).mkdir()
        write_tokenizer(model.tokenizer.tokenizer, folder / TOKENIZER)
        student = _built_student(section, folder / TOKENIZER, what)
        pair = NewPair(
            path=output / f"{name}.yaml",
            tokenizer=output / TOKENIZER,
            kind=type(model).__name__,
            teacher=_parameters(model),
            student=_parameters(student),
            teacher_encoder=_parameters(model, "encoder"),
            student_encoder=_parameters(student, "encoder"),
            encoder=section["student"]["encoder"],
        )
        (folder / f"{name}.yaml").write_text(_text(pair, source, name, section), encoding="utf-8")
    return pair


def _check_request(teacher: str | Path, output: Path, share: float | Fraction, name: str) -> None:
    if not 0 < share <= 1:
        raise ValueError(
            f"size is {share}, wanted a share of the teacher's encoder above 0 and at most 1, such as 1/8"
        )
    if not re.fullmatch(r"\w[\w-]*", name):
        raise ValueError(f"name is {name!r}, wanted letters, digits, _ and -")
    if name in shipped_configs():
        raise ValueError(f"name is {name!r}, which a shipped config has. Choose another name")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"output is {output}, which is there already and not an empty folder. Give another folder")
    if Path(teacher).is_file() and Path(teacher).suffix != ".nemo":
        raise ValueError(f"the teacher {str(teacher)!r} is not a .nemo file. Give a .nemo file or a pretrained name")


def _model_section(model: EncDecRNNTModel, source: str, tokenizer: Path, share: float | Fraction) -> dict[str, Any]:
    """Return the `model` section of the config: all that differs from the shipped base."""
    cfg = OmegaConf.to_container(model.cfg, resolve=True)
    base = OmegaConf.to_container(OmegaConf.load(shipped_configs()["base"]).model)
    networks = {part: _own_block(cfg, base, part) for part in ("preprocessor", "encoder", "decoder", "joint")}
    section: dict[str, Any] = {
        "sample_rate": cfg.get("sample_rate") or networks["preprocessor"]["sample_rate"],
        "model_defaults": {
            "enc_hidden": model.joint.encoder_hidden,
            "pred_hidden": networks["decoder"]["prednet"]["pred_hidden"],
            "joint_hidden": networks["joint"]["jointnet"]["joint_hidden"],
        },
        "codert": {"teacher_checkpoint": source},
        "student": {"encoder": scaled_encoder(networks["encoder"], share)},
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": networks.pop("preprocessor"),
        "spec_augment": _own_block(cfg, base, "spec_augment") if cfg.get("spec_augment") else None,
        **networks,
    }
    if is_tdt(model.cfg):
        for block, keys in DURATION_KEYS.items():
            own = {key: cfg[block][key] for key in keys if key in (cfg.get(block) or {})}
            section[block] = {**section.get(block, {}), **own}
        durations = list(model.cfg.decoding.durations)
        section["student"]["durations"] = durations if 1 in durations else None  # some utterances would have no loss
        if section.get("loss", {}).get("loss_name") not in TDT_LOSSES:
            section["loss"] = {"loss_name": "tdt", "tdt_kwargs": {"durations": durations}}
    if head := cfg.get("aux_ctc"):
        decoder = {**head["decoder"], "feat_in": None, "num_classes": -1, "vocabulary": []}
        section["aux_ctc"] = {"ctc_loss_weight": head.get("ctc_loss_weight", 0.3), "decoder": decoder}
    return section


def _own_block(cfg: Mapping[str, Any], base: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return a block of the teacher's, with its class's default for each key that only the base has and would add."""
    block = _without(cfg[part], FILLED_IN)
    if part == "joint":
        block["jointnet"].pop("pred_hidden", None)
    arguments = inspect.signature(get_class(block["_target_"]).__init__).parameters
    for key in base.get(part, ()):
        if isinstance(block.get(key), dict):
            block[key] = {**INNER_DEFAULTS.get(key, {}), **block[key]}
        elif key not in block and key not in arguments:
            raise ValueError(
                f"its {part} is of class {block['_target_']}, which takes no {key}: it cannot be used here"
            )
        elif key not in block:
            block[key] = arguments[key].default
    return block


def _without(node: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(node, dict):
        return copy.deepcopy(node)
    return {key: _without(value, keys) for key, value in node.items() if key not in keys}


def _built_student(section: dict[str, Any], tokenizer: Path, what: str) -> EncDecRNNTBPEModel:
    """Build the student alone, from the config as it is inherited. Every check of a config has then passed."""
    base, strategy = (OmegaConf.load(shipped_configs()[name]).model for name in ("base", f"strategy/{STRATEGY}"))
    cfg = OmegaConf.merge(base, OmegaConf.create(section), strategy, {"tokenizer": {"dir": str(tokenizer)}})
    for block in ("train_ds", "validation_ds", "test_ds", "optim"):
        cfg.pop(block)
    try:
        return EncDecRNNTBPEModel(student_config(cfg))
    except ValueError as error:
        raise ValueError(f"{what} cannot be used as it is: {error}") from error


def _parameters(model: EncDecRNNTModel, *parts: str) -> int:
    parts = parts or ("encoder", "decoder", "joint")
    return sum(parameter.numel() for part in parts for parameter in getattr(model, part).parameters())


def _text(pair: NewPair, source: str, name: str, section: dict[str, Any]) -> str:
    ctc = "# The teacher has a CTC head too: model.codert.teacher_logits=ctc distils it in place of the joint.\n"
    head = f"""\
# A pair whose teacher is {source}
#
{"".join(f"#   {line}{chr(10)}" for line in pair.summary().splitlines())}#
#   codert train --config-dir {pair.path.parent} --config-name {name} \\
#       model.train_ds.manifest_filepath=TRAIN.json model.validation_ds.manifest_filepath=DEV.json \\
#       exp_manager.exp_dir=runs/{name}
#
# Everything that is not here is inherited from the shipped base.yaml (codert configs cp base FOLDER to read it): data
# loaders, optimiser, trainer. Its number of updates is for small data; for hours of speech add, say,
# trainer.max_steps=20000 trainer.val_check_interval=1000. With strategy=student the student is trained alone, as the
# baseline.
{ctc if "aux_ctc" in section else ""}defaults:
  - base
  - _self_
  - strategy: {STRATEGY}

"""
    return head + OmegaConf.to_yaml(OmegaConf.create({"name": name, "model": section}))
