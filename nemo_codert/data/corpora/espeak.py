"""The espeak-ng synthesiser of the `espeakng-loader` package, called through ctypes: text -> samples.

Needs neither torch nor NeMo. See espeak-ng's `speak_lib.h` for the functions called here.
"""

import ctypes
import shutil
import tempfile
from pathlib import Path

import numpy as np

SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: espeak_Synth returns when its callback has had all samples
RATE_PARAMETER, VOLUME_PARAMETER, PITCH_PARAMETER = 1, 2, 3
VOLUME = 60  # espeak's default of 100 clips with a third of the voices
UTF8_TEXT = 1
LONGEST_DATA_PATH = 150  # espeak-ng keeps its data path in a buffer of 160 bytes and cuts longer ones

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """One synthesiser, always starting from the same state: equal calls in equal order give equal samples.

    Every instance loads a private copy of the library, because espeak-ng keeps phase and flutter counters in static
    variables that no call resets. Not for use from several threads.
    """

    def __init__(self, seed: int = 0) -> None:
        import espeakng_loader

        self._folder = tempfile.TemporaryDirectory(prefix="espeak_", ignore_cleanup_errors=True)
        source = Path(espeakng_loader.get_library_path())
        self._library = ctypes.CDLL(shutil.copy(source, Path(self._folder.name) / source.name))
        self._data = Path(espeakng_loader.get_data_path())
        self._received: list[np.ndarray] = []
        self._callback = _Callback(self._receive)  # a reference, which ctypes does not hold: espeak calls it later
        self._declare()
        self.sample_rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, str(self._short_data_path()).encode(), 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng could not start with its data in {self._data}: reinstall espeakng-loader.")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(seed)
        self._library.espeak_SetParameter(VOLUME_PARAMETER, VOLUME, 0)

    def check_voice(self, voice: str) -> None:
        """Raise ValueError unless accent and variant of `voice`, e.g. "en-US+f2", are both installed."""
        accent, _, variant = voice.partition("+")
        # espeak-ng silently replaces an unknown variant by the accent's own voice.
        for path in (self._data / "lang" / "gmw" / accent, self._data / "voices" / "!v" / variant):
            if not path.is_file():
                raise ValueError(f"voice {voice}: espeak-ng has no {path.name!r}. Use espeakng-loader 0.2.4.")

    def say(self, text: str, *, voice: str, words_per_minute: int, pitch: int) -> np.ndarray:
        """Synthesise [S] float32 in -1..1 at `sample_rate`, with closing silence. pitch: 0-99, 50 the voice's own."""
        if self._library.espeak_SetVoiceByName(f"gmw/{voice}".encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice}. Use espeakng-loader 0.2.4.")
        self._library.espeak_SetParameter(RATE_PARAMETER, words_per_minute, 0)
        self._library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
        self._received.clear()
        encoded = text.encode("utf-8")
        if self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, UTF8_TEXT, None, None) != 0:
            raise RuntimeError(f"espeak-ng could not synthesise {text!r} with voice {voice}.")
        return np.concatenate([np.zeros(0, np.int16), *self._received]).astype(np.float32) / 32768.0

    def close(self) -> None:
        """Free the synthesiser and its copy of the library."""
        self._library.espeak_Terminate()
        self._folder.cleanup()

    def _declare(self) -> None:
        number, text = ctypes.c_int, ctypes.c_char_p
        self._library.espeak_Initialize.argtypes = [number, number, text, number]
        self._library.espeak_SetSynthCallback.argtypes = [_Callback]
        self._library.espeak_SetVoiceByName.argtypes = [text]
        self._library.espeak_SetParameter.argtypes = [number, number, number]
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        unsigned, pointer = ctypes.c_uint, ctypes.c_void_p
        self._library.espeak_Synth.argtypes = [
            text, ctypes.c_size_t, unsigned, number, unsigned, unsigned, pointer, pointer,
        ]  # fmt: skip

    def _short_data_path(self) -> Path:
        if len(str(self._data).encode()) <= LONGEST_DATA_PATH:
            return self._data
        link = Path(self._folder.name) / "espeak-ng-data"
        link.symlink_to(self._data, target_is_directory=True)
        return link

    def _receive(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._received.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0
