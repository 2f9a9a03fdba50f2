"""An exported student in sherpa-onnx: whole utterances, and pieces of a stream. Needs neither NeMo nor torch."""

from pathlib import Path
from typing import Any

import numpy as np

from nemo_codert.config.arguments import not_installed


class SherpaOnnx:
    """sherpa-onnx on the files that `nemo_codert.export.sherpa_onnx` wrote, one utterance at a time.

    A cache-aware encoder, whose metadata has a `window_size`, goes to the online recognizer, any other to the offline
    one. `online` is True for the first; `sample_rate` is the model's, in Hz.

    Raises:
        ValueError: sherpa-onnx is not installed, or a file is missing: sherpa-onnx would end the process.
    """

    def __init__(self, folder: Path, *, int8: bool = False, threads: int = 1) -> None:
        try:
            import sherpa_onnx
        except ImportError as error:
            raise ValueError(not_installed("deploy", "sherpa-onnx")) from error
        import onnx

        suffix = ".int8.onnx" if int8 else ".onnx"
        files = {name: folder / f"{name}{suffix}" for name in ("encoder", "decoder", "joiner")}
        files["tokens"] = folder / "tokens.txt"
        if missing := [path.name for path in files.values() if not path.is_file()]:
            raise ValueError(f"{folder} has no {', '.join(missing)}: export again with --format sherpa-onnx")
        metadata = {entry.key: entry.value for entry in onnx.load(files["encoder"]).metadata_props}
        self.window = int(metadata.get("window_size", 0))  # frames of 10 ms
        self.online, self.sample_rate = self.window > 0, int(metadata["sample_rate"])
        program = sherpa_onnx.OnlineRecognizer if self.online else sherpa_onnx.OfflineRecognizer
        self.recognizer = program.from_transducer(
            **{name: str(path) for name, path in files.items()},
            sample_rate=self.sample_rate,
            feature_dim=int(metadata["feat_dim"]),
            num_threads=threads,
            decoding_method="greedy_search",
            model_type="nemo_transducer",
        )

    def text(self, signal: np.ndarray, rate: int | None = None) -> str:
        """Transcribe [S] float32 in -1..1 of any rate in Hz, by default the model's."""
        stream, rate = self.recognizer.create_stream(), rate or self.sample_rate
        if not self.online:
            stream.accept_waveform(rate, signal)
            self.recognizer.decode_stream(stream)
            return stream.result.text
        self.add(stream, signal, rate)
        return self.add(stream, self.silence(rate), rate, is_last=True)

    def add(self, stream: Any, signal: np.ndarray, rate: int, *, is_last: bool = False) -> str:
        """Give a piece of audio to a stream of the online recognizer, and return the text of the stream so far.

        Args:
            stream: of `recognizer.create_stream()`.
            signal: [S] float32. rate: in Hz, the same for all pieces of a stream.
        """
        stream.accept_waveform(rate, signal)
        if is_last:
            stream.input_finished()
        while self.recognizer.is_ready(stream):
            self.recognizer.decode_stream(stream)
        return self.recognizer.get_result(stream).strip()

    def silence(self, rate: int) -> np.ndarray:
        """Return the silence that ends a stream: the recognizer consumes whole windows and one more frame."""
        return np.zeros(rate * (self.window + 1) // 100, dtype=np.float32)
