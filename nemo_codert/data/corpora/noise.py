"""Noise that is added to recordings when a corpus is made. Imports numpy only."""

import numpy as np

from nemo_codert.data.corpora.corpus import SAMPLE_RATE


def pink_noise(length: int, generator: np.random.Generator) -> np.ndarray:
    """Return [length] float32 with RMS 1 and a power that falls as 1/frequency below 4 kHz and is flat above."""
    spectrum = np.fft.rfft(generator.standard_normal(length))
    frequency = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    noise = np.fft.irfft(spectrum / np.sqrt(np.clip(frequency, 50.0, 4000.0)), length)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def noise_level(speech: np.ndarray, signal_to_noise: float) -> float:
    """Return the RMS of a noise that lies `signal_to_noise` dB below the RMS of the speech [S]."""
    return float(np.sqrt(np.mean(speech**2)) * 10 ** (-signal_to_noise / 20))
