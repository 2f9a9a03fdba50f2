"""Data: NeMo manifests and their screening, tokenizers, and the recipes behind `scripts/prepare_data.py`.

Reading order: manifest.py, audio_files.py, corpus.py, then one recipe (synthetic.py with sentences.py and espeak.py,
digits.py, librispeech.py). Importing this package imports neither torch nor NeMo.
"""

from nemo_codert.data.manifest import (
    Loader,
    Reason,
    Screening,
    read_manifest,
    screen_dataset,
    screen_manifest,
    write_manifest,
)

__all__ = ["Loader", "Reason", "Screening", "read_manifest", "screen_dataset", "screen_manifest", "write_manifest"]
