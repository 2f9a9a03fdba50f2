"""A page that transcribes a microphone or a file: Gradio in front of an exported student in sherpa-onnx.

The text of a cache-aware student (the online recognizer) also appears while the microphone is on.
"""

from typing import Any

import numpy as np

from nemo_codert.evaluation.sherpa_program import SherpaOnnx

Audio = tuple[int, np.ndarray] | None  # Gradio's: rate in Hz, and [S] or [S, channels]
Live = tuple[Any, int] | None  # a stream of the online recognizer, and the rate of its audio
SHORTEST = 0.1  # seconds: less may have no frame


def signal_of(audio: Audio) -> tuple[int, np.ndarray]:
    """Return rate and [S] float32 in -1..1, the mean of the channels; of no audio an empty signal."""
    rate, samples = audio or (16000, np.zeros(0, dtype=np.float32))
    scale = -np.iinfo(samples.dtype).min if np.issubdtype(samples.dtype, np.integer) else 1
    mean = samples.mean(axis=1) if samples.ndim == 2 else samples
    return rate, np.ascontiguousarray(mean / scale, dtype=np.float32)


class Recogniser(SherpaOnnx):
    """An exported student, called with Gradio's audio."""

    def transcribe(self, audio: Audio) -> str:
        """Transcribe a whole utterance."""
        rate, signal = signal_of(audio)
        return self.text(signal, rate) if len(signal) >= SHORTEST * rate else ""

    def listen(self, audio: Audio, live: Live) -> tuple[Live, str]:
        """Transcribe a stream so far, with its next piece; a first piece starts one."""
        rate, signal = signal_of(audio)
        stream, rate = live or (self.recognizer.create_stream(), rate)
        return (stream, rate), self.add(stream, signal, rate)

    def end(self, live: Live) -> str:
        """Transcribe all of a stream: silence ends it, since a last piece may arrive later."""
        return self.add(live[0], self.silence(live[1]), live[1]) if live else ""


def demo_page(recogniser: Recogniser, name: str) -> Any:
    """Return the page, a `gradio.Blocks`, whose `launch()` serves it."""
    import gradio as gr

    with gr.Blocks(title=f"{name}, codert demo", analytics_enabled=False) as page:
        gr.Markdown(f"# {name}\n{'Streaming' if recogniser.online else 'Whole-utterance'} student on sherpa-onnx")
        text = gr.Textbox(label="Transcript", lines=3)
        if recogniser.online:
            live, stream = gr.Audio(sources=["microphone"], streaming=True, label="Live"), gr.State()
            live.start_recording(lambda: (None, ""), None, [stream, text])
            live.stream(recogniser.listen, [live, stream], [stream, text], stream_every=0.3, show_progress="hidden")
            live.stop_recording(recogniser.end, stream, text)
        audio = gr.Audio(sources=["microphone", "upload"], label="Record or upload", buttons=["download"])
        audio.change(recogniser.transcribe, audio, text, api_name="transcribe")
    return page
