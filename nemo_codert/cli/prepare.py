"""`codert prepare`: the data of one experiment. The work is the recipes in `nemo_codert.data.corpora`."""

import argparse
import sys
from pathlib import Path

from nemo_codert.cli import console
from nemo_codert.cli.tables import format_table
from nemo_codert.config.arguments import require_installed

DESCRIPTION = """
Makes the data of one experiment: NeMo manifests `train.json`, `dev.json`, `test*.json`, and `tokenizer/`.

synthetic: synthetic speech, 25 minutes of it, made on the spot in seconds (50 MB).
fsdd: connected digits from a checkout of github.com/Jakobovski/free-spoken-digit-dataset (2.7 hours, 300 MB); with
--snr half of it in noise, and with --unseen-speaker another speaker left out of training (one fold of five).
words: connected words from isolated ones in the layout of Speech Commands, train, dev and test of different speakers;
with --labelled-share most of the training set once more without its text.
kaldi: Kaldi data folders (wav.scp, text, utt2spk, perhaps segments); the audio stays in place.
mixtures: for every line of a manifest with speakers, an enrolment of the speaker, a beep, and the utterance together
with one of another speaker: mixed.json; the same without the other one: clean.json; the mixtures again after the
enrolment of the other speaker: counter.json.
librispeech: LibriSpeech that is already there, or its mini version (0.5 GB) downloaded, or all of it (60 GB)
downloaded.

Sets: synthetic has train, dev, test (other voices and other sentences); fsdd has train, dev, test_seen (the four
training speakers, the dataset's official test takes), test_unseen (a fifth speaker), and with --snr both tests once
more, all in noise; words has train, dev, test, and with --labelled-share train_labelled and train_unlabelled;
kaldi has train, dev, test, and with --labelled-share the same two;
librispeech has train (all train-* parts), dev (all dev-* parts), test_clean, test_other. All is
written below --output-dir, except a download, which goes below --corpus-dir. A second run with the same options gives
the same files. `codert prepare fsdd --help` lists the options of one corpus.

Exit status 2: bad options or data; the message names the remedy.
"""
EXAMPLES = r"""
codert prepare synthetic --output-dir data/synthetic
codert prepare fsdd --fsdd-dir free-spoken-digit-dataset --output-dir data/fsdd
codert prepare fsdd --fsdd-dir free-spoken-digit-dataset --unseen-speaker theo --snr 0 15 \
    --output-dir data/fsdd_folds/theo
codert prepare words --words-dir speech_commands --output-dir data/words --labelled-share 0.1
codert prepare words --words-dir speech_commands --output-dir data/words_folds/0 --fold 0 --labelled-share 0.1 \
    --by-speaker
codert prepare kaldi --train-dir sentences/train --test-dir sentences/test --output-dir data/sentences
codert prepare mixtures --manifest data/words/train.json --enrollment 2.0 --sir -5 5 \
    --output-dir data/mixtures/train
codert prepare librispeech --corpus-dir LibriSpeech --output-dir data/librispeech
codert prepare librispeech --corpus-dir data/download --download \
    --parts train-clean-5 dev-clean-2 --vocab-size 256 --output-dir data/mini_librispeech
codert prepare librispeech --corpus-dir data/download --download --output-dir data/librispeech
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command, with one of its own for each corpus."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    corpora = parser.add_subparsers(
        dest="corpus", required=True, metavar="{synthetic,fsdd,words,kaldi,mixtures,librispeech}"
    )
    about = {
        "synthetic": "commands spoken by espeak-ng voices, nothing to download",
        "fsdd": "connected digits, real speech",
        "words": "connected words of many speakers, real speech",
        "kaldi": "Kaldi data folders, such as those of a recipe's data/train and data/test",
        "mixtures": "one of two speakers, chosen by an enrolment, from another corpus",
        "librispeech": "read English, real speech, up to 960 hours",
    }
    synthetic, fsdd, words, kaldi, mixtures, librispeech = (
        corpora.add_parser(name, help=text, description=text) for name, text in about.items()
    )
    synthetic.add_argument("--train-utterances", type=int, default=600, metavar="N")
    synthetic.add_argument("--dev-utterances", type=int, default=60, metavar="N")
    synthetic.add_argument("--test-utterances", type=int, default=100, metavar="N")
    fsdd.add_argument("--fsdd-dir", type=Path, required=True, metavar="DIR", help="holds recordings/3_jackson_12.wav")
    fsdd.add_argument("--train-utterances", type=int, default=3000, metavar="N")
    fsdd.add_argument("--unseen-speaker", default="george", metavar="NAME", help="never in training: test_unseen")
    fsdd.add_argument(
        "--snr", type=float, nargs=2, metavar=("LOW", "HIGH"), help="dB of noise on half of train, dev; *_noisy tests"
    )
    words.add_argument("--words-dir", type=Path, required=True, metavar="DIR", help="holds yes/0a2b400e_nohash_0.wav")
    words.add_argument("--train-utterances", type=int, default=6000, metavar="N")
    words.add_argument(
        "--fold", type=int, metavar="N", help="0-4: of five, in each of which other speakers are tested"
    )
    _add_kaldi_options(kaldi)
    for corpus in (words, kaldi):
        _add_shares(corpus)
    for corpus in (synthetic, fsdd, words):
        corpus.add_argument(
            "--varied",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="train with long silent edges, noise, other speeds and levels (default)",
        )
    mixtures.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="lines with speaker and text")
    mixtures.add_argument("--enrollment", type=float, default=2.0, metavar="SECONDS", help="0: none, and no beep")
    mixtures.add_argument(
        "--sir", type=float, nargs=2, default=(-5.0, 5.0), metavar=("LOW", "HIGH"), help="dB of target to other"
    )
    librispeech.add_argument(
        "--corpus-dir", type=Path, required=True, metavar="DIR", help="holds train-clean-100, ..."
    )
    librispeech.add_argument("--download", action="store_true", help="fetch missing parts into --corpus-dir first")
    librispeech.add_argument("--parts", nargs="+", metavar="PART", help="default: every part found; to download: all")
    librispeech.add_argument("--num-jobs", type=int, default=1, metavar="N", help="threads that read audio headers")
    for corpus in (synthetic, fsdd, words, kaldi, mixtures, librispeech):
        corpus.add_argument("--output-dir", type=Path, required=True, metavar="DIR")
        if corpus is not librispeech:
            corpus.add_argument("--seed", type=int, default=0, metavar="N")
    for corpus, pieces in ((synthetic, 96), (fsdd, 40), (words, 64), (kaldi, 256), (librispeech, 1024)):
        corpus.add_argument("--vocab-size", type=int, default=pieces, metavar="N", help=f"BPE pieces ({pieces})")
    return parser


def _add_kaldi_options(kaldi: argparse.ArgumentParser) -> None:
    kaldi.add_argument("--train-dir", type=Path, required=True, metavar="DIR", help="holds wav.scp, text, utt2spk")
    kaldi.add_argument("--test-dir", type=Path, required=True, metavar="DIR", help="another one, of other speakers")
    kaldi.add_argument("--dev-dir", type=Path, metavar="DIR", help="a third one (speakers taken out of train)")
    kaldi.add_argument("--dev-share", type=float, default=0.1, metavar="SHARE", help="of the speakers, for dev (0.1)")
    kaldi.add_argument(
        "--wav-root", type=Path, metavar="DIR", help="of relative paths in wav.scp (the folder that holds --train-dir)"
    )
    kaldi.add_argument("--num-jobs", type=int, default=1, metavar="N", help="processes that read audio headers")


def _add_shares(corpus: argparse.ArgumentParser) -> None:
    corpus.add_argument(
        "--labelled-share", type=float, metavar="SHARE", help="of train, as train_labelled; the rest loses its text"
    )
    corpus.add_argument("--by-speaker", action="store_true", help="a share of the speakers, not of the utterances")


def make_corpus(options: argparse.Namespace) -> dict[str, Path]:
    """Make the corpus that the options select; return its manifests by the name of the set."""
    given = {name: value for name, value in vars(options).items() if name != "corpus"}
    if options.corpus == "synthetic":
        from nemo_codert.data.corpora.synthetic import make_synthetic_corpus

        return make_synthetic_corpus(**given)
    if options.corpus == "fsdd":
        from nemo_codert.data.corpora.digits import make_digit_corpus

        return make_digit_corpus(**{**given, "snr": options.snr and tuple(options.snr)})
    if options.corpus == "words":
        from nemo_codert.data.corpora.words import make_word_corpus

        return make_word_corpus(**given)
    if options.corpus == "kaldi":
        from nemo_codert.data.corpora.kaldi import make_kaldi_corpus

        return make_kaldi_corpus(**given)
    if options.corpus == "mixtures":
        from nemo_codert.data.corpora.mixtures import make_mixtures

        return make_mixtures(**{**given, "sir": tuple(options.sir)})
    from nemo_codert.data.corpora.librispeech import make_librispeech_corpus

    return make_librispeech_corpus(**given)


def corpus_table(manifests: dict[str, Path], tokenizer: Path) -> str:
    """Return a table of what each set holds, and of the pieces of the tokenizer where there is one."""
    from nemo_codert.data.manifest import manifest_lines

    rows = []
    for name, path in manifests.items():
        entries = manifest_lines(path)
        hours = sum(entry["duration"] for entry in entries) / 3600
        words = sum(len(entry.get("text", "").split()) for entry in entries)
        speakers = len({entry["speaker"] for entry in entries if "speaker" in entry})
        rows.append((name, str(len(entries)), f"{hours:.2f}", str(words), str(speakers), str(path)))
    if tokenizer.is_dir():
        pieces = len((tokenizer / "tokenizer.vocab").read_text(encoding="utf-8").splitlines())
        rows.append(("tokenizer", f"{pieces} pieces", "", "", "", str(tokenizer)))
    return format_table(("set", "utterances", "hours", "words", "speakers", "manifest"), rows, left=(0, 5))


def run(options: argparse.Namespace) -> None:
    """Make the corpus, and print what it holds."""
    if options.corpus == "synthetic":
        require_installed("scripts", "espeakng_loader")
    print(corpus_table(make_corpus(options), options.output_dir / "tokenizer"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
