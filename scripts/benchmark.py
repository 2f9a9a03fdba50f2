"""What a pair costs: one training step of the pair against steps of the same student and teacher alone.

    python scripts/benchmark.py --config-name quickstart --rounds 15

Times whole optimizer steps (features, SpecAugment, networks, losses, backward, clipping, AdamW) of one batch of noise,
in turns within one process, and prints medians and their ratio to the sum of the two lone steps. Ratios are what to
read: seconds depend on the machine and on what else it does. Data loading is left out. The lone models use the loss
that the pair uses, so that with a stock joint on CPU they are quicker here than with NeMo's own.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CONF = Path(__file__).resolve().parents[1] / "conf"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-name", default="quickstart", help="a file in conf/")
    parser.add_argument("--strategy", default="shared_kd", help="of the pair")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each model")
    parser.add_argument("--batch-size", type=int, default=16, help="utterances")
    parser.add_argument("--seconds", type=float, default=4.0, help="of audio per utterance")
    parser.add_argument("--tokens", type=int, default=12, help="word pieces per utterance")
    options = parser.parse_args(arguments)
    for name in ("rounds", "batch_size", "seconds", "tokens"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}, wanted a number above 0")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    options = parse_arguments(arguments)
    from nemo_codert.console import quieten_libraries

    quieten_libraries()
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(options, folder)
        seconds = time_in_turns(steps, options.rounds)
    lone = seconds["student alone"] + seconds["teacher alone"]
    print(f"{options.config_name}, {options.strategy}, {options.batch_size} x {options.seconds:g} s")
    for name, value in seconds.items():
        print(f"  {name:14} {value:7.3f} s a step   {value / lone:5.2f} of both alone")


def make_steps(options: argparse.Namespace, folder: str) -> dict[str, Callable[[], None]]:
    """One callable per model that takes one optimizer step on the same batch."""
    import torch
    from hydra import compose, initialize_config_dir
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    from nemo_codert.data.sentences import random_sentence
    from nemo_codert.data.tokenizer import train_tokenizer
    from nemo_codert.models import EncDecCoDERTBPEModel, student_config, teacher_config

    generator = random.Random(0)
    texts = [random_sentence(generator) for _ in range(300)]
    train_tokenizer(texts, folder, vocab_size=96)
    overrides = [f"strategy={options.strategy}", f"model.tokenizer.dir='{folder}'", "exp_manager.exp_dir=unused"]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose(options.config_name, overrides=[*overrides, "model.train_ds=null", "model.validation_ds=null"])
    pair = EncDecCoDERTBPEModel(cfg.model)
    models = {
        "pair": (pair, lambda batch: pair.training_step(batch, 0)["loss"]),
        "student alone": lone_model(EncDecRNNTBPEModel(student_config(cfg.model))),
        "teacher alone": lone_model(EncDecRNNTBPEModel(teacher_config(cfg.model))),
    }
    batch = noise(options, pair.joint.num_classes_with_blank - 1)
    clip = cfg.trainer.gradient_clip_val

    def make_step(model: torch.nn.Module, loss_of: Callable) -> Callable[[], None]:
        model.train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters)

        def step() -> None:
            optimizer.zero_grad()
            loss_of(batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()

        return step

    return {name: make_step(model, loss_of) for name, (model, loss_of) in models.items()}


def lone_model(model: "EncDecRNNTBPEModel") -> tuple["EncDecRNNTBPEModel", Callable]:  # noqa: F821
    """A stock model and its training loss: what NeMo's `training_step` computes, without a trainer to log to."""
    from nemo_codert.models.transducer import Transducer, TransducerLoss, encode, predict

    networks, loss = Transducer(model.encoder, model.decoder, model.joint), TransducerLoss("auto", model.loss)

    def loss_of(batch: tuple) -> object:
        signal, signal_len, transcript, transcript_len = batch
        features, features_len = model.preprocessor(input_signal=signal, length=signal_len)
        if model.spec_augmentation is not None:
            features = model.spec_augmentation(input_spec=features, length=features_len)
        encoded = encode(networks, features, features_len)
        decoded = predict(networks, transcript, transcript_len)
        return loss(model.joint, encoded, decoded, transcript, transcript_len)

    return model, loss_of


def noise(options: argparse.Namespace, vocabulary: int) -> tuple:
    """A batch of noise with random transcripts: signal [B, S], signal_len, transcript [B, U], transcript_len."""
    import torch

    samples = int(options.seconds * 16000)
    lengths = torch.full((options.batch_size,), samples), torch.full((options.batch_size,), options.tokens)
    signal = 0.1 * torch.randn(options.batch_size, samples)
    return signal, lengths[0], torch.randint(0, vocabulary, (options.batch_size, options.tokens)), lengths[1]


def time_in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each step; one step of each in turn, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
