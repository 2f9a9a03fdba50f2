"""An exported transducer in onnxruntime and sherpa-onnx, on the same signals as NeMo's `transcribe`.

onnxruntime has no transducer decoding: the greedy loop over NeMo's two ONNX files is here, onnxruntime imported when
called. sherpa-onnx does all by itself, features included (`nemo_codert.evaluation.sherpa_program`).

F mel bins, T_in feature frames, T encoder frames, D channels, V vocabulary without blank (blank_id = V).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_codert.evaluation.transcribe import max_symbols
from nemo_codert.evaluation.word_errors import WER, WordErrors, total_word_errors


@dataclass(frozen=True)
class Deployed:
    """Result of one program on a manifest: the program's name, a text for each utterance, files and word errors."""

    name: str
    texts: list[str]
    files: list[Path]
    errors: WordErrors

    @classmethod
    def of(
        cls, name: str, texts: list[str], files: Sequence[Path], references: Sequence[str], metric: str = WER
    ) -> "Deployed":
        """Build a result, counting its word errors, or for the metric CER those of characters."""
        return cls(name, texts, list(files), total_word_errors(references, texts, metric))

    @property
    def megabytes(self) -> float:
        """Size of the files."""
        return sum(path.stat().st_size for path in self.files) / 1e6

    def agreement(self, other: "Deployed") -> int:
        """Return the number of utterances with the same text."""
        return sum(text == theirs for text, theirs in zip(self.texts, other.texts, strict=True))


class OnnxGreedy:
    """Greedy decoding over NeMo's `encoder-NAME.onnx` and `decoder_joint-NAME.onnx`, one utterance at a time.

    Args:
        model: the stock model that was exported; gives preprocessor, tokenizer and decoding settings.
    """

    def __init__(self, model: EncDecRNNTBPEModel, encoder: Path, decoder_joint: Path) -> None:
        self.model, self.blank = model, model.decoder.blank_idx
        self.max_symbols, self.durations = max_symbols(model.cfg.decoding), model.cfg.decoding.get("durations")
        self.encoder, self.decoder_joint = _session(encoder), _session(decoder_joint)
        self.encoder_inputs, self.step_inputs = (
            [port.name for port in session.get_inputs()] for session in (self.encoder, self.decoder_joint)
        )

    def text(self, signal: np.ndarray) -> str:
        """Transcribe [S] float32: features by NeMo, the rest by onnxruntime."""
        return self.model.tokenizer.ids_to_text(self.tokens(signal))

    @torch.no_grad()
    def tokens(self, signal: np.ndarray) -> list[int]:
        """Transcribe [S] float32 to ids of word pieces."""
        samples = torch.from_numpy(signal)[None]
        features, length = self.model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
        inputs = dict(zip(self.encoder_inputs, (features.numpy(), length.numpy()), strict=True))
        encoded, encoded_len = self.encoder.run(None, inputs)
        return self._greedy(encoded[:, :, : int(encoded_len[0])])

    def _greedy(self, encoded: np.ndarray) -> list[int]:
        """Decode [1, D, T] to ids. The prediction network reads the last token again until a new one is emitted.

        A TDT model moves on by the likeliest duration; an RNN-T, whose tokens take no time, by one frame with a blank.
        """
        last, tokens, t, steps = self.blank, [], 0, 0
        states = [state.numpy() for state in self.model.decoder.initialize_state(torch.zeros(1, 1))]
        while t < encoded.shape[2]:
            logits, new_states = self._step(encoded[:, :, t : t + 1], last, states)
            of_tokens, of_durations = np.split(logits.ravel(), [self.blank + 1])
            is_blank = (best := int(of_tokens.argmax())) == self.blank
            frames = self.durations[int(of_durations.argmax())] if self.durations else 0
            if not is_blank:
                last, states = best, new_states
                tokens.append(best)
            steps = 0 if frames else steps + 1
            if not frames and (is_blank or steps == self.max_symbols):
                frames, steps = 1, 0
            t += frames
        return tokens

    def _step(self, frame: np.ndarray, last: int, states: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
        inputs = (frame, np.array([[last]], dtype=np.int32), np.array([1], dtype=np.int32), *states)
        logits, _, *new_states = self.decoder_joint.run(None, dict(zip(self.step_inputs, inputs, strict=True)))
        return logits, new_states


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def report(deployed: Sequence[Deployed], references: Sequence[str], show: int, metric: str = WER) -> str:
    """Return Markdown: a line for each program, compared with the first, and the texts of the first utterances."""
    first = deployed[0]
    lines = [f"| program | {metric} | change (points) | same text as NeMo | files |", "|---|---:|---:|---:|---:|"]
    for program in deployed:
        rate = f"{program.errors.wer:.2%}" if program.errors.words else "n/a"
        change = f"{100 * (program.errors.wer - first.errors.wer):+.2f}" if program.errors.words else "n/a"
        change = "" if program is first else change
        same = f"{program.agreement(first)} of {len(references)}"
        lines.append(f"| {program.name} | {rate} | {change} | {same} | {program.megabytes:.2f} MB |")
    names = " | ".join(program.name for program in deployed)
    lines += ["", f"| reference | {names} |", "|---" * (len(deployed) + 1) + "|"]
    for i, reference in enumerate(references[:show]):
        texts = [program.texts[i] if program is first else _against(first, program, i) for program in deployed]
        lines.append("| " + " | ".join([reference, *texts]) + " |")
    return "\n".join(lines) + "\n"


def _against(first: Deployed, program: Deployed, i: int) -> str:
    return "same" if program.texts[i] == first.texts[i] else program.texts[i]
