"""Kind of the model that a config describes: a pair, a standard RNN-T, or another one."""

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from nemo_codert.config.tdt import is_tdt
from nemo_codert.config.values import sub_block

PAIR_CLASS = "EncDecCoDERTBPEModel"
# Kinds of models whose RNN-T part can be a teacher.
HYBRID, TDT = KINDS = ("a hybrid RNN-T/CTC model", "a TDT model")
# Kinds of models that transcribe audio, beside a standard RNN-T.
TRANSCRIBED = (*KINDS, "EncDecCTCModelBPE", "EncDecCTCModel", "EncDecRNNTModel", "EncDecHybridRNNTCTCModel")


class OtherModelKind(ValueError):
    """Error about a model of a kind that will not do."""


def is_pair(config: DictConfig) -> bool:
    """Return True for the config of a pair: by the class that it names or, where it names none, by its block `codert`.

    Args:
        config: a model's config: of a built model, of a file, or the `model` section of a YAML.

    Example:
        >>> is_pair(DictConfig({"target": "nemo_codert.models.EncDecCoDERTBPEModel"}))
        True
        >>> is_pair(DictConfig({"target": "nemo.collections.asr.models.EncDecRNNTBPEModel"}))
        False
        >>> is_pair(DictConfig({"encoder": {}, "student": {}, "codert": {}}))
        True
    """
    return _class_name(config) == PAIR_CLASS if config.get("target") else "codert" in config


def refuse_other_models(config: DictConfig, what: str, kinds: Sequence[str] | None = ()) -> None:
    """Check that a built model's config is that of a pair, of a standard RNN-T or of one of `kinds`.

    Args:
        config: a model's config, with its class as `target`.
        what: the model in messages.
        kinds: other kinds that will do, of `KINDS`; None: any model.

    Raises:
        OtherModelKind: names the kind of the model.
    """
    name = _class_name(config)
    if kinds is None or name == PAIR_CLASS or not (found := set(_kinds(config, name)) - set(kinds)):
        return
    wanted = " or ".join(("a standard RNN-T (EncDecRNNTBPEModel)", *kinds))
    raise OtherModelKind(f"{what} is {', '.join(sorted(found))}, wanted {wanted} with a bpe tokenizer")


def _class_name(config: DictConfig) -> str:
    return str(config.get("target", "")).rsplit(".", 1)[-1]


def _kinds(config: DictConfig, class_name: str) -> Iterator[str]:
    """Yield each property that a model has besides those of a standard RNN-T."""
    joint, tokenizer = sub_block(config, "joint"), str(sub_block(config, "tokenizer").get("type", "bpe")).lower()
    if class_name == "EncDecHybridRNNTCTCBPEModel":
        yield HYBRID
    elif class_name != "EncDecRNNTBPEModel":
        yield class_name or "of unknown class"
    if is_tdt(config):
        yield TDT
    elif joint.get("num_extra_outputs"):
        yield "a multi-blank model"
    if float(joint.get("masking_prob") or 0) > 0:
        yield "a HAINAN model"
    if config.get("adapters"):
        yield "an RNN-T with adapters"
    if tokenizer != "bpe":
        yield f"an RNN-T with a tokenizer of type {tokenizer!r}"
