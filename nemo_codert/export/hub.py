"""A written `.nemo` file and its card at the Hugging Face hub, by NeMo's own `push_to_hf_hub`.

That method saves a model again and fills a template of NeMo's. Here the hub gets the very file that lies on the disk,
and as README.md the card beside it.
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import HfApi
from nemo.core.classes.mixins.hf_io_mixin import HuggingFaceFileIO


class UploadError(OSError):
    """A model that did not reach the hub. The files on the disk are as they were."""


class StockFile(HuggingFaceFileIO):
    """A `.nemo` file in the place of the model that `push_to_hf_hub` would save.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._save_restore_connector = SimpleNamespace()  # push_to_hf_hub sets how it packs a file; this one is packed

    def save_to(self, save_path: str | Path) -> None:
        """Copy the file. Takes the place of `ModelPT.save_to`."""
        shutil.copyfile(self.path, save_path)


def push_to_hub(model: str | Path, card: str | Path, repository: str) -> str:
    """Upload a model file and its card in one commit. A repository that is not there is made, a public one.

    Args:
        model: `.nemo` file of a stock model; at the hub its name is NAME.nemo, which `from_pretrained` looks for.
        card: Markdown file, README.md at the hub.
        repository: `ORG/NAME`; the endpoint is that of the environment (`HF_ENDPOINT`), and so is the token.

    Returns:
        The address of the repository.

    Raises:
        UploadError: the hub cannot be reached, or refuses the token, the name or a file.
    """
    text, endpoint = Path(card).read_text(encoding="utf-8"), HfApi().endpoint
    try:
        StockFile(model).push_to_hf_hub(repository, model_card=text, commit_message=f"{Path(model).name} and its card")
    except Exception as error:  # client, transport and service each have their own kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UploadError(
            f"{repository} was not uploaded to {endpoint}: {reason}. {model} and {card} are complete, the "
            "upload alone is missing"
        ) from error
    return f"{endpoint}/{repository}"
