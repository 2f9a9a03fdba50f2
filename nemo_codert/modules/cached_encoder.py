"""Stand-in for the encoder of a teacher whose targets are stored: it has a shape and no weights."""

from typing import Any, NoReturn

from nemo.core.classes import NeuralModule

TARGET = "nemo_codert.modules.cached_encoder.CachedEncoder"


class CachedEncoder(NeuralModule):
    """Width, stride and depth of an encoder that is not there.

    Args:
        d_model: channels of its output.
        subsampling_factor: feature frames per encoder frame.
        n_layers: its layers, of which the last one's output is stored; None where no layer is.

    Example:
        >>> encoder = CachedEncoder(d_model=512, subsampling_factor=8, n_layers=17)
        >>> encoder.d_model, list(encoder.parameters())
        (512, [])
    """

    def __init__(self, d_model: int, subsampling_factor: int, n_layers: int | None = None) -> None:
        super().__init__()
        self.d_model, self.subsampling_factor, self.n_layers = d_model, subsampling_factor, n_layers

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        # Overrides Module.forward.
        raise ValueError(
            "the teacher of this pair is stored targets (model.codert.teacher is cached): its encoder cannot be run. "
            "Take the model that the targets were made from"
        )
