"""The corpus of the tests in two shards, as NeMo's own script lays tarred audio out."""

import json
import tarfile
from pathlib import Path

SHARDS = 2


def write_shards(manifest: Path, folder: Path) -> dict[str, dict[str, str]]:
    """Two tar files and their manifests; the data blocks of NeMo's classic and of its lhotse loader.

    Utterance i of the manifest goes to shard i modulo 2.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    every = []
    for shard in range(SHARDS):
        lines = []
        with tarfile.open(folder / f"audio_{shard}.tar", "w") as archive:
            for entry in entries[shard::SHARDS]:
                path = Path(entry["audio_filepath"])
                archive.add(path, arcname=path.name)
                lines.append(json.dumps({**entry, "audio_filepath": path.name, "shard_id": shard}) + "\n")
        (folder / f"manifest_{shard}.json").write_text("".join(lines))
        every += lines
    (folder / "manifest.json").write_text("".join(every))
    numbers = f"_OP_0..{SHARDS - 1}_CL_"
    common = {"is_tarred": True, "tarred_audio_filepaths": str(folder / f"audio_{numbers}.tar")}
    scattered = {"tarred_shard_strategy": "scatter", "shuffle_n": 4}
    return {
        "classic": {**common, **scattered, "manifest_filepath": str(folder / "manifest.json")},
        "lhotse": {**common, "manifest_filepath": str(folder / f"manifest_{numbers}.json")},
    }
