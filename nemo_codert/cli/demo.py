"""`codert demo`: an exported student in the browser. The work is `nemo_codert.evaluation.demo`."""

import argparse
import sys
from pathlib import Path

from nemo_codert.cli import console
from nemo_codert.config.arguments import require_installed

DESCRIPTION = """
Serves a page that transcribes your microphone, or a file, with an exported student on sherpa-onnx.

--model is a folder that `codert export --format sherpa-onnx` wrote. The text of a cache-aware student appears while
you speak, that of any other when the recording ends. The page is for this machine alone (127.0.0.1), where browsers
allow the microphone; audio goes nowhere else. Ctrl-C ends it. Needs pip install "nemo_codert[demo]".

Exit status 2: a missing package or file; the message names the remedy.
"""
EXAMPLES = """
codert demo --model sherpa
codert demo --model sherpa --int8 --port 8080
"""
HOST = "127.0.0.1"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = console.command_parser(DESCRIPTION, EXAMPLES)
    parser.add_argument("--model", type=Path, required=True, metavar="SHERPA_FOLDER")
    parser.add_argument("--int8", action="store_true", help="the 8-bit files, where the export has them")
    parser.add_argument("--port", type=int, default=7860, help="of the page (7860)")
    return parser


def run(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    require_installed("demo", "gradio", "sherpa_onnx")
    from nemo_codert.evaluation.demo import Recogniser, demo_page

    page = demo_page(Recogniser(options.model, int8=options.int8), options.model.resolve().name)
    try:
        page.launch(
            server_name=HOST,
            server_port=options.port,
            share=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ValueError(f"`port` is {options.port}, which is in use: give another") from error
    print(f"http://{HOST}:{options.port}  Ctrl-C ends", flush=True)
    page.block_thread()


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(argv)
    return console.exit_status(lambda: run(options), options)


if __name__ == "__main__":
    sys.exit(main())
