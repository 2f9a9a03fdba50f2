"""Makes the data of one experiment: NeMo manifests `train.json`, `dev.json`, `test*.json`, and `tokenizer/`.

Synthetic speech, 25 minutes of it, made on the spot in seconds (50 MB)::

    python scripts/prepare_data.py synthetic --output-dir data/synthetic

Connected digits from a checkout of github.com/Jakobovski/free-spoken-digit-dataset (2.7 hours, 300 MB)::

    python scripts/prepare_data.py fsdd --fsdd-dir free-spoken-digit-dataset --output-dir data/fsdd

The same with noise, and with another speaker left out of training (one fold of five)::

    python scripts/prepare_data.py fsdd --fsdd-dir free-spoken-digit-dataset --unseen-speaker theo --snr 0 15 \\
        --output-dir data/fsdd_folds/theo

LibriSpeech that is already there, or its mini version (0.5 GB) downloaded, or all of it (60 GB) downloaded::

    python scripts/prepare_data.py librispeech --corpus-dir LibriSpeech --output-dir data/librispeech
    python scripts/prepare_data.py librispeech --corpus-dir data/download --download \\
        --parts train-clean-5 dev-clean-2 --vocab-size 256 --output-dir data/mini_librispeech
    python scripts/prepare_data.py librispeech --corpus-dir data/download --download --output-dir data/librispeech

Sets: synthetic has train, dev, test (other voices and other sentences); fsdd has train, dev, test_seen (the four
training speakers, the dataset's official test takes), test_unseen (a fifth speaker), and with --snr both tests once
more, all in noise; librispeech has train (all
train-* parts), dev (all dev-* parts), test_clean, test_other. All is written below --output-dir, except a download,
which goes below --corpus-dir. A second run with the same options gives the same files. Exit status 2: bad options or
data; the message says what to change. `python scripts/prepare_data.py fsdd --help` lists the options of one corpus.
"""

import argparse
import json
from pathlib import Path

from nemo_codert.cli import console


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line (by default this process's)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = parser.add_subparsers(dest="corpus", required=True, metavar="{synthetic,fsdd,librispeech}")
    synthetic = corpora.add_parser("synthetic", help="commands spoken by espeak-ng voices, nothing to download")
    synthetic.add_argument("--train-utterances", type=int, default=600, metavar="N")
    synthetic.add_argument("--dev-utterances", type=int, default=60, metavar="N")
    synthetic.add_argument("--test-utterances", type=int, default=100, metavar="N")
    fsdd = corpora.add_parser("fsdd", help="connected digits, real speech")
    fsdd.add_argument("--fsdd-dir", type=Path, required=True, metavar="DIR", help="holds recordings/3_jackson_12.wav")
    fsdd.add_argument("--train-utterances", type=int, default=3000, metavar="N")
    fsdd.add_argument("--unseen-speaker", default="george", metavar="NAME", help="never in training: test_unseen")
    fsdd.add_argument(
        "--snr", type=float, nargs=2, metavar=("LOW", "HIGH"), help="dB of noise on half of train, dev; *_noisy tests"
    )
    librispeech = corpora.add_parser("librispeech", help="read English, real speech, up to 960 hours")
    librispeech.add_argument(
        "--corpus-dir", type=Path, required=True, metavar="DIR", help="holds train-clean-100, ..."
    )
    librispeech.add_argument("--download", action="store_true", help="fetch missing parts into --corpus-dir first")
    librispeech.add_argument("--parts", nargs="+", metavar="PART", help="default: every part found; to download: all")
    librispeech.add_argument("--num-jobs", type=int, default=1, metavar="N", help="threads that read audio headers")
    for name, corpus, pieces in (("synthetic", synthetic, 96), ("fsdd", fsdd, 40), ("librispeech", librispeech, 1024)):
        corpus.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
        corpus.add_argument("--vocab-size", type=int, default=pieces, metavar="N", help=f"BPE pieces ({pieces})")
        if name != "librispeech":
            corpus.add_argument("--seed", type=int, default=0, metavar="N")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> dict[str, Path]:
    """Makes the corpus that the options ask for; returns its manifests by set name."""
    if options.corpus == "synthetic":
        from nemo_codert.data.corpora.synthetic import make_synthetic_corpus

        return make_synthetic_corpus(
            options.output_dir,
            train_utterances=options.train_utterances,
            dev_utterances=options.dev_utterances,
            test_utterances=options.test_utterances,
            vocab_size=options.vocab_size,
            seed=options.seed,
        )
    if options.corpus == "fsdd":
        from nemo_codert.data.corpora.digits import make_digit_corpus

        return make_digit_corpus(
            options.fsdd_dir,
            options.output_dir,
            train_utterances=options.train_utterances,
            unseen_speaker=options.unseen_speaker,
            snr=options.snr and tuple(options.snr),
            vocab_size=options.vocab_size,
            seed=options.seed,
        )
    from nemo_codert.data.corpora.librispeech import make_librispeech_corpus

    return make_librispeech_corpus(
        options.output_dir,
        corpus_dir=options.corpus_dir,
        parts=options.parts,
        download=options.download,
        vocab_size=options.vocab_size,
        num_jobs=options.num_jobs,
    )


def print_table(manifests: dict[str, Path], tokenizer: Path) -> None:
    """Utterances and hours of every set, and where the tokenizer is."""
    print(f"{'set':<12} {'utterances':>10} {'hours':>8}  manifest")
    for name, path in manifests.items():
        with open(path, encoding="utf-8") as file:
            durations = [json.loads(line)["duration"] for line in file]
        print(f"{name:<12} {len(durations):>10} {sum(durations) / 3600:>8.2f}  {path}")
    if tokenizer.is_dir():
        pieces = len((tokenizer / "tokenizer.vocab").read_text(encoding="utf-8").splitlines())
        print(f"tokenizer    {pieces:>10} pieces    {tokenizer}")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(argv)
    return console.exit_status(lambda: print_table(prepare(options), options.output_dir / "tokenizer"))
