"""Data: NeMo manifests and their screening, tokenizers, and the recipes behind `codert prepare`.

Reading order: manifest.py, audio_files.py, screening.py with data_report.py, corpus.py, then one recipe (synthetic.py
with sentences.py and espeak.py, digits.py, librispeech.py). Importing this package imports neither torch nor NeMo.
"""

from nemo_codert.data.data_report import DataReport
from nemo_codert.data.manifest import parse_manifest, read_manifest, write_manifest
from nemo_codert.data.screening import Loader, Reason, Screening, screen_dataset, screen_manifest

__all__ = [
    "DataReport",
    "Loader",
    "Reason",
    "Screening",
    "parse_manifest",
    "read_manifest",
    "screen_dataset",
    "screen_manifest",
    "write_manifest",
]
