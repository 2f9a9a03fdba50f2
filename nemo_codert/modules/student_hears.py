"""Noise and masks of SpecAugment on the student's copy of a batch alone.

Ritter-Gutierrez et al., arXiv:2312.12153, teach a noisy student by a teacher of clean speech. NeMo's own augmentation
does the work; random numbers come from generators of their own, so that neither the teacher's features nor anything
else that is random in a run depends on the block.
B batch, S samples, F mel bins, T_in feature frames.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from nemo.collections.asr.modules import SpectrogramAugmentation
from nemo.collections.asr.parts.preprocessing.perturb import NoisePerturbation
from nemo.collections.asr.parts.preprocessing.segment import AudioSegment

from nemo_codert.config.student_hears import PATH, StudentHearsConfig
from nemo_codert.nemo_compat import augmentation_generators

Features = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Draws:
    """States of every generator that the features of a batch draw from: Python's, torch's, SpecAugment's."""

    python: object
    cpu: torch.Tensor
    cuda: torch.Tensor | None
    own: tuple[tuple[random.Random, object], ...]

    @classmethod
    def now(cls, device: torch.device, augmentation: torch.nn.Module | None) -> "Draws":
        """Return the present states; `augmentation` is the SpecAugment of both branches, if there is one."""
        return cls._of(device, augmentation_generators(augmentation) if augmentation is not None else ())

    @classmethod
    def _of(cls, device: torch.device, generators: Iterable[random.Random]) -> "Draws":
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        own = tuple((generator, generator.getstate()) for generator in generators)
        return cls(random.getstate(), torch.get_rng_state(), cuda, own)

    @contextmanager
    def kept(self, device: torch.device) -> Iterator[None]:
        """Leave the generators as they were when the block began, whatever is drawn in it."""
        now = self._of(device, [generator for generator, _ in self.own])
        try:
            yield
        finally:
            now.restore(device)

    def restore(self, device: torch.device) -> None:
        """Set the generators to these states."""
        random.setstate(self.python)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)
        for generator, state in self.own:
            generator.setstate(state)


class StudentHears:
    """Noise and masks for the student's copy of a batch.

    Args:
        settings: of `model.codert.student_hears`.
        sample_rate: the model's, in Hz; noise of another rate is resampled.

    Attributes:
        seed: of all random numbers here, together with the step: a resumed run draws what the whole run would have
            drawn. Ranks of one run get different seeds.

    Example:
        >>> noisy = StudentHears(StudentHearsConfig(spec_augment={"freq_masks": 1, "freq_width": 8}), 16000)
        >>> signal, lengths = torch.ones(2, 16000), torch.tensor([16000, 8000])
        >>> extract = lambda signal, lengths: (torch.ones(2, 80, 100), lengths // 160)
        >>> draws = Draws.now(signal.device, None)
        >>> features, _ = noisy.features(signal, lengths, extract, draws, extract(signal, lengths), at=(0, 0))
        >>> bool((features == 0).any()), torch.equal(draws.cpu, torch.get_rng_state())
        (True, True)
    """

    def __init__(self, settings: StudentHearsConfig, sample_rate: int) -> None:
        self.settings, self.sample_rate, self.seed = settings, sample_rate, 0
        # `random` itself as the generator of masks that are drawn one by one: it is seeded for every batch.
        masks = settings.spec_augment
        self.masks = SpectrogramAugmentation(**masks, rng=random) if masks else None
        self._noise: NoisePerturbation | None = None

    def features(
        self,
        signal: torch.Tensor,
        signal_len: torch.Tensor,
        extract: Callable[[torch.Tensor, torch.Tensor], Features],
        before: Draws,
        features: Features,
        at: tuple[int, int],
    ) -> Features:
        """Return the features [B, F, T_in] of the student's copy, and their lengths [B].

        Dither and the masks of both branches are those of `features`: an utterance without noise and without masks of
        its own has the teacher's features, bit for bit.

        Args:
            signal: [B, S]. signal_len: [B] int64, samples. Neither is changed.
            extract: makes features of a signal, as it made `features`.
            before: states of the generators before it did so.
            features: the teacher's, of the same signal.
            at: optimizer step, and number of the batch within the step.
        """
        with before.kept(signal.device):
            if self.settings.noise is not None:
                self._seed(at, 0, signal.device)
                noisy = self.with_noise(signal, signal_len)
                before.restore(signal.device)
                features = extract(noisy, signal_len)
            if self.masks is not None:
                self._seed(at, 1, signal.device)
                features = self.masks(input_spec=features[0], length=features[1]), features[1]
        return features

    def with_noise(self, signal: torch.Tensor, signal_len: torch.Tensor) -> torch.Tensor:
        """Return a copy of signals [B, S] in which some have noise, drawn from Python's generator.

        Raises:
            ValueError: the manifest of the noise, or one of its files, is not there any more.
        """
        noisy = signal.clone()
        for row, length in zip(noisy, signal_len.tolist(), strict=True):
            if random.random() >= self.settings.probability:
                continue
            segment = AudioSegment(row[:length].float().cpu().numpy(), sample_rate=self.sample_rate)
            try:
                self._perturbation().perturb(segment)
            except OSError as error:
                raise ValueError(f"{PATH}.noise is {self.settings.noise}: {error}. Put the noise back") from error
            row[:length] = torch.from_numpy(segment.samples).to(row)
        return noisy

    def _perturbation(self) -> NoisePerturbation:
        """Return NeMo's noise, opened at first use: a restored model does not need the files."""
        if self._noise is None:
            if not Path(self.settings.noise).is_file():
                raise ValueError(f"{PATH}.noise is {self.settings.noise}: no such file. Give a manifest of noise")
            low, high = self.settings.snr
            self._noise = NoisePerturbation(self.settings.noise, low, high, orig_sr=self.sample_rate)
        return self._noise

    def _seed(self, at: tuple[int, int], stream: int, device: torch.device) -> None:
        seed = int(np.random.SeedSequence([self.seed, *at, stream]).generate_state(1, np.uint64)[0])
        random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
