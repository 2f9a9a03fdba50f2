"""Train a teacher and its student together, or either of them alone: see nemo_codert/cli/train.py."""

from nemo_codert.cli.train import main

if __name__ == "__main__":
    main()
