"""Export of a transducer for sherpa-onnx: encoder, prediction network, joint, tokens and metadata.

sherpa-onnx names the networks encoder, decoder and joiner, one ONNX graph each, and reads shapes and the kind of
feature normalisation from the encoder's metadata. Of an additive joint the projections go into the encoder's and the
prediction network's graph, which then put out logits, and the joiner is their sum. May import models and export.

B batch, F mel bins, T encoder frames, U target tokens, D channels, V vocabulary without blank (blank_id = V).
"""

import copy
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel
from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor, RNNTDecoder
from nemo.collections.asr.parts.submodules.multi_head_attention import RelPositionalEncoding
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from nemo_codert import __version__
from nemo_codert.config.arguments import not_installed
from nemo_codert.export.audio_limit import check_positions
from nemo_codert.export.stock_file import stock_of
from nemo_codert.files.atomic import whole_folder
from nemo_codert.models.open_model import networks_of
from nemo_codert.models.stock_config import network_blocks
from nemo_codert.modules import AdditiveRNNTJoint
from nemo_codert.modules.encoder_geometry import encoder_geometry
from nemo_codert.modules.transducer import Transducer
from nemo_codert.modules.unprojected_lstm import replace_projected_lstms

NETWORKS = ("encoder", "decoder", "joiner")
TOKENS = "tokens.txt"
TDT_URL = "https://arxiv.org/abs/2304.06795#tdt"  # sherpa-onnx takes a model for TDT where its url has the word
OPSET = 17  # the opset of NeMo's own ONNX files
QUANTIZED = ("MatMul", "Gemm", "LSTM")  # convolutions stay in float: small, and slower as integers
HIGHFREQ_BELOW_NYQUIST = 400  # Hz: where the mel filters of the offline recognizer end
ONLINE_RATE = 16000  # Hz: the online recognizer's filters end at 8000 Hz whatever the rate
FEATURE_SECONDS = {"win_length": 0.025, "hop_length": 0.01}  # fixed in sherpa-onnx
FEATURE_KEYS = {"win_length": "window_size", "hop_length": "window_stride"}
FEATURE_VALUES = {
    "window": "hann",
    "lowfreq": 0,
    "log": True,
    "frame_splicing": 1,
    "preemph": 0.97,
    "mag_power": 2.0,
    "mel_norm": "slaney",
    "exact_pad": False,
    "log_zero_guard_type": "add",
    "log_zero_guard_value": 2**-24,
}


def export_sherpa_onnx(
    model: EncDecRNNTBPEModel,
    folder: str | Path,
    *,
    branch: str = "student",
    joint: str = "auto",
    int8: bool = False,
) -> list[Path]:
    """Write `encoder.onnx`, `decoder.onnx`, `joiner.onnx` and `tokens.txt` into a folder, complete or not at all.

    Args:
        model: a pair, or an RNN-T with a stock or an additive joint; not changed.
        branch: `student` or `teacher` of a pair.
        joint: `auto` keeps an additive joint, so that the joiner is a sum; the other forms of
            `nemo_codert.modules.to_stock_joint` make a stock joint of it first.
        int8: write `encoder.int8.onnx` and so on too: weights of matrix products and LSTMs in 8 bits, activations
            quantised at run time (onnxruntime's dynamic quantisation).

    Returns:
        The files written. An earlier export in the folder is replaced.

    Raises:
        ValueError: a model that sherpa-onnx cannot serve, every reason named; int8 without onnxruntime.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: sherpa-onnx takes a folder")
    networks = networks_of(model, branch)
    durations = network_blocks(model.cfg, branch).decoding.get("durations") or ()
    online = is_cache_aware(networks.encoder)
    if problems := [*front_end_problems(model, online), *network_problems(networks, durations)]:
        raise ValueError("sherpa-onnx cannot serve this model:\n  - " + "\n  - ".join(problems))
    if not online:
        check_positions(networks.encoder)
    if int8:
        _quantization()
    if joint != "auto":
        networks = networks_of(stock_of(model, branch=branch, joint=joint), "student")
    with torch.random.fork_rng(devices=[]), whole_folder(folder) as scratch:
        _write_networks(networks, scratch, _metadata(model, networks))
        _write_tokens(list(model.joint.vocabulary), scratch / TOKENS)
        if int8:
            _write_int8(scratch, networks)
        names = [path.name for path in sorted(scratch.iterdir())]
    for stale in {f"{network}.int8.onnx" for network in NETWORKS} - set(names):
        (folder / stale).unlink(missing_ok=True)
    return [folder / name for name in names]


def is_cache_aware(encoder: nn.Module) -> bool:
    """Return True for an encoder that is served chunk by chunk, by sherpa-onnx's online recognizer."""
    return getattr(encoder, "att_context_style", "regular") == "chunked_limited"


def front_end_problems(model: EncDecRNNTBPEModel, online: bool = False) -> list[str]:
    """List settings of the model's features that sherpa-onnx cannot compute, each with key, value and remedy.

    online: check for the online recognizer, whose features differ from the offline one's.
    """
    if type(model.preprocessor) is not AudioToMelSpectrogramPreprocessor:
        name = type(model.preprocessor).__name__
        return [f"model.preprocessor is {name}, sherpa-onnx has AudioToMelSpectrogramPreprocessor's features only"]
    featurizer, given = model.preprocessor.featurizer, model.cfg.preprocessor
    rate, problems = featurizer.sample_rate, []
    program = "sherpa-onnx's online recognizer" if online else "sherpa-onnx"
    for name, seconds in FEATURE_SECONDS.items():
        if getattr(featurizer, name) != round(seconds * rate):
            value = getattr(featurizer, name) / rate
            problems.append(f"model.preprocessor.{FEATURE_KEYS[name]} is {value:g}, {program} has {seconds:g} only")
    if featurizer.n_fft != 1 << (featurizer.win_length - 1).bit_length():
        wanted = 1 << (featurizer.win_length - 1).bit_length()
        problems.append(f"model.preprocessor.n_fft is {featurizer.n_fft}, {program} has {wanted} at {rate} Hz")
    for key, value in FEATURE_VALUES.items():
        if given.get(key, value) != value:
            problems.append(f"model.preprocessor.{key} is {given[key]!r}, {program} has {value!r} only")
    highest = rate / 2 if online else rate / 2 - HIGHFREQ_BELOW_NYQUIST
    allowed = {
        "normalize": (featurizer.normalize or "NA", ("NA",) if online else ("per_feature", "NA")),
        "highfreq": (given.get("highfreq") or rate / 2, (highest, rate / 2)),
        "sample_rate": (rate, (ONLINE_RATE,) if online else (rate,)),
    }
    for key, (value, wanted) in allowed.items():
        if value not in wanted:
            listed = " or ".join(f"{choice!r}" for choice in sorted(set(wanted)))
            problems.append(f"model.preprocessor.{key} is {value!r}, {program} has {listed} only")
    remedy = ". Train with that value, or use --format onnx and compute the features yourself"
    return [problem + remedy for problem in problems]


def network_problems(networks: Transducer, durations: Sequence[int] = ()) -> list[str]:
    """List parts of the networks that sherpa-onnx cannot run, in the form of `front_end_problems`.

    durations: of a TDT model.
    """
    decoder, problems = networks.decoder, []
    if list(durations) != list(range(len(durations))):
        problems.append(
            f"model.decoding.durations is {list(durations)}, sherpa-onnx takes the place of a duration for the number "
            "of frames. Train with 0, 1, 2, ..., or use --format nemo"
        )
    if durations and is_cache_aware(networks.encoder):
        problems.append(
            "the model is a TDT model with a cache-aware encoder, sherpa-onnx runs TDT models over whole utterances "
            "only. Train a student without durations, or use --format nemo"
        )
    if not isinstance(decoder, RNNTDecoder):
        problems.append(f"model.decoder is {type(decoder).__name__}, sherpa-onnx runs NeMo's RNNTDecoder only")
    else:
        if not decoder.blank_as_pad:
            problems.append("model.decoder.blank_as_pad is false, sherpa-onnx starts with a blank. Train with true")
        lstm = decoder.prediction["dec_rnn"].lstm
        if not isinstance(lstm, nn.LSTM) or lstm.hidden_size != decoder.pred_hidden:
            problems.append(
                "model.decoder has a projected or normalised LSTM, sherpa-onnx runs a plain one. Train with "
                "rnn_hidden_size and normalization_mode null"
            )
    if is_cache_aware(networks.encoder) and networks.encoder.att_context_size[0] < 0:
        problems.append(
            f"model.encoder.att_context_size is {list(networks.encoder.att_context_size)}: the cache of a stream has "
            "a size. Limit the left context"
        )
    return problems


def _metadata(model: EncDecRNNTBPEModel, networks: Transducer) -> dict[str, str | int]:
    """Return the metadata that sherpa-onnx reads from the encoder, and the origin of the file."""
    featurizer = model.preprocessor.featurizer
    return {
        "vocab_size": networks.decoder.vocab_size,
        "normalize_type": "per_feature" if featurizer.normalize == "per_feature" else "NA",
        "pred_rnn_layers": networks.decoder.pred_rnn_layers,
        "pred_hidden": networks.decoder.pred_hidden,
        "subsampling_factor": encoder_geometry(networks.encoder, featurizer.nfilt).stride,
        "feat_dim": featurizer.nfilt,
        "sample_rate": featurizer.sample_rate,
        "model_type": "EncDecRNNTBPEModel",
        "version": 1,
        "model_author": "NeMo",
        "url": TDT_URL if networks.joint.num_extra_outputs else "",
        "comment": f"nemo_codert {__version__}",
    }


def _stream_metadata(encoder: nn.Module) -> dict[str, int]:
    """Return the windows into which the online recognizer cuts features, and the shapes of its caches."""
    stream = encoder.streaming_cfg
    last = [value[1] if isinstance(value, list) else value for value in (stream.chunk_size, stream.shift_size)]
    before = stream.pre_encode_cache_size
    caches = {
        "cache_last_channel": (len(encoder.layers), stream.last_channel_cache_size, encoder.d_model),
        "cache_last_time": (len(encoder.layers), encoder.d_model, encoder.conv_context_size[0]),
    }
    shapes = {f"{name}_dim{i}": size for name, shape in caches.items() for i, size in enumerate(shape, start=1)}
    window = last[0] + (before[1] if isinstance(before, list) else before)
    return {"window_size": window, "chunk_shift": last[1], **shapes}


def _write_networks(networks: Transducer, folder: Path, metadata: dict[str, str | int]) -> None:
    """Write the three graphs. Copies are exported, because NeMo's `export` changes its module."""
    paths = [folder / f"{network}.onnx" for network in NETWORKS]
    encoder, decoder, joint = copy.deepcopy((networks.encoder, networks.decoder, networks.joint))
    for part in (encoder, decoder, joint, joint.pred):  # a student's joint holds a shared projection unregistered
        part.cpu().float().eval().requires_grad_(False)
    replace_projected_lstms(encoder)
    if is_cache_aware(encoder):
        encoder.setup_streaming_params()
        metadata = {**metadata, **_stream_metadata(encoder)}
        export_stream(StreamGraph(encoder), paths[0])
    else:
        encoder.export(str(paths[0]), onnx_opset_version=OPSET)
    additive = isinstance(joint, AdditiveRNNTJoint)
    export_prediction(PredictionGraph(decoder, joint.pred if additive else nn.Identity()), paths[1])
    if additive:
        _project_output(paths[0], joint.enc)
        onnx.save(sum_joiner(joint.num_classes_with_blank), paths[2])
    else:
        joint.export(str(paths[2]), onnx_opset_version=OPSET)
    encoder_graph = onnx.load(paths[0])
    helper.set_model_props(encoder_graph, {key: str(value) for key, value in metadata.items()})
    onnx.save(encoder_graph, paths[0])


class StreamGraph(nn.Module):
    """A cache-aware encoder on one window of features, as the online recognizer feeds it.

    A window begins with features of the window before, and NeMo's export drops the frames of these features; the
    recognizer drops them from the first window too, which has no window before. Here nothing is dropped while all
    caches are empty: the frames of a stream are then those of the whole utterance, from the first on.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.dropped = encoder, encoder.streaming_cfg.drop_extra_pre_encoded
        encoder.streaming_cfg.valid_out_len = 0  # the first window may make more frames than the others
        _shorten_positions(encoder)

    def forward(
        self,
        signal: torch.Tensor,
        length: torch.Tensor,
        channels: torch.Tensor,
        time: torch.Tensor,
        filled: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Encode a window: [B, F, T_in], [B], two caches, filled length of the first [B] -> [B, D, T], [B], caches."""
        self.encoder.streaming_cfg.drop_extra_pre_encoded = self.dropped * (filled.max() > 0).long()
        return self.encoder.forward_for_export(signal, length, channels, time, filled)


def _shorten_positions(encoder: nn.Module) -> None:
    """Shorten the table of relative positions, megabytes of it, to the reach of a window and its cache."""
    if type(encoder.pos_enc) is RelPositionalEncoding:
        stream = _stream_metadata(encoder)
        reach = stream["cache_last_channel_dim2"] + stream["window_size"]  # frames: an upper bound
        table = encoder.pos_enc.pe  # [1, 2N - 1, D], the middle is position 0
        middle = table.shape[1] // 2
        if reach <= middle:
            encoder.pos_enc.pe = table[:, middle - reach + 1 : middle + reach].clone()


def export_stream(graph: StreamGraph, path: Path) -> None:
    """Write the graph as ONNX."""
    encoder = graph.encoder
    channels, time, filled = encoder.get_initial_cache_state(batch_size=1)
    caches = (channels.transpose(0, 1), time.transpose(0, 1), filled + 1)  # traces the branch of filled caches
    inputs = ["audio_signal", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len"]
    outputs = ["outputs", "encoded_lengths", *(f"{name}_next" for name in inputs[2:])]
    window = _stream_metadata(encoder)["window_size"]
    signal = torch.zeros(1, encoder._feat_in, window)
    axes = {name: {0: "B"} for name in (*inputs, *outputs)}
    axes["audio_signal"][2], axes["outputs"][2] = "T_in", "T"
    _to_onnx(graph, (signal, torch.tensor([window]), *caches), path, inputs, outputs, axes)


class PredictionGraph(nn.Module):
    """The prediction network and following layers in the form of sherpa-onnx, without a start symbol."""

    def __init__(self, decoder: RNNTDecoder, projection: nn.Module) -> None:
        super().__init__()
        self.decoder, self.projection = decoder, projection

    def forward(
        self, targets: torch.Tensor, target_length: torch.Tensor, state_1: torch.Tensor, state_2: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Predict: [B, U], [B] and two LSTM states [layers, B, D] -> [B, D, U], [B] and the new states."""
        decoded, states = self.decoder.predict(targets, state=[state_1, state_2], add_sos=False)  # [B, U, D]
        return self.projection(decoded).transpose(1, 2), target_length, *states


def export_prediction(graph: PredictionGraph, path: Path) -> None:
    """Write the graph as ONNX by torch: the export of NeMo's `RNNTDecoder` has states for a batch of one only."""
    states = graph.decoder.initialize_state(torch.zeros(1, 1))
    inputs = (torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32), *states)
    axes = {
        **{"targets": {0: "B", 1: "U"}, "outputs": {0: "B", 2: "U"}},
        **{name: {0: "B"} for name in ("target_length", "output_length")},
        **{name: {1: "B"} for name in ("state_1", "state_2", "new_state_1", "new_state_2")},
    }
    outputs = ["outputs", "output_length", "new_state_1", "new_state_2"]
    _to_onnx(graph, inputs, path, ["targets", "target_length", "state_1", "state_2"], outputs, axes)


def _to_onnx(
    graph: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    with torch.inference_mode():
        torch.onnx.export(
            graph,
            example,
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,  # NeMo's export, too, uses the older exporter
        )


def _project_output(path: Path, projection: nn.Linear) -> None:
    """Append a linear layer over the channels of a graph's first output: [B, D, T] -> [B, V+1, T]."""
    model = onnx.load(path)
    graph, output = model.graph, model.graph.output[0]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["unprojected" if name == output.name else name for name in names]
    weights = {"projection.weight": projection.weight.T, "projection.bias": projection.bias}
    for name, value in weights.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().numpy()), name))
    graph.node.extend(
        [
            helper.make_node("Transpose", ["unprojected"], ["unprojected_channels_last"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["unprojected_channels_last", "projection.weight"], ["without_bias"]),
            helper.make_node("Add", ["without_bias", "projection.bias"], ["projected"]),
            helper.make_node("Transpose", ["projected"], [output.name], perm=[0, 2, 1]),
        ]
    )
    output.type.tensor_type.shape.dim[1].dim_value = projection.out_features
    onnx.checker.check_model(model)
    onnx.save(model, path)


def sum_joiner(classes: int) -> onnx.ModelProto:
    """Return an additive joint without projections: [B, V+1, T] and [B, V+1, U] -> sums [B, T, U, V+1]."""
    shapes = {"encoder_outputs": ["B", classes, "T"], "decoder_outputs": ["B", classes, "U"]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["B", "T", "U", classes])
    axes = [numpy_helper.from_array(np.array([axis], dtype=np.int64), f"axis_{axis}") for axis in (1, 2)]
    nodes = [
        helper.make_node("Transpose", ["encoder_outputs"], ["encoder_logits"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["encoder_logits", "axis_2"], ["encoder_side"]),
        helper.make_node("Transpose", ["decoder_outputs"], ["prediction_logits"], perm=[0, 2, 1]),
        helper.make_node("Unsqueeze", ["prediction_logits", "axis_1"], ["prediction_side"]),
        helper.make_node("Add", ["encoder_side", "prediction_side"], ["outputs"]),
    ]
    graph = helper.make_graph(nodes, "additive_joint", inputs, [output], axes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _write_tokens(pieces: list[str], path: Path) -> None:
    """Write one word piece and its id on each line, the blank last."""
    lines = [f"{piece} {i}\n" for i, piece in enumerate([*pieces, "<blk>"])]
    path.write_text("".join(lines), encoding="utf-8")


def _write_int8(folder: Path, networks: Transducer) -> None:
    quantize_dynamic, weight_type = _quantization()
    for network in NETWORKS:
        source, target = folder / f"{network}.onnx", folder / f"{network}.int8.onnx"
        if network == "joiner" and isinstance(networks.joint, AdditiveRNNTJoint):
            shutil.copyfile(source, target)  # a sum has no weights
            continue
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # the warning recommends a preprocessing pass for computer vision
        try:
            # LSTMs always get signed weights; with seven bits these cannot overflow.
            seven_bits = any(node.op_type == "LSTM" for node in onnx.load(source).graph.node)
            options = {"op_types_to_quantize": list(QUANTIZED), "weight_type": weight_type, "reduce_range": seven_bits}
            quantize_dynamic(source, target, **options)
        finally:
            logging.disable(before)


def _quantization() -> tuple:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ValueError(f"int8: {not_installed('deploy', 'onnxruntime')}") from error
    # Unsigned weights: signed ones overflow in the 16-bit sums of x86 processors without VNNI (half of the encoder's
    # largest output off; with unsigned ones a hundredth).
    return quantize_dynamic, QuantType.QUInt8
