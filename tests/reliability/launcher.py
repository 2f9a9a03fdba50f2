"""Runs scripts/train.py many times from one process that has imported NeMo once, and kills what it started.

Reads one JSON command a line from standard input and answers with one line each. A command has `arguments` of the
script, a `log` file, and a `fault`: null, or one of
    {"kind": "after", "seconds": x}     SIGKILL from outside, x seconds after the first batch has begun
    {"kind": "validation", "number": n} SIGKILL in the n-th batch that this process validates
    {"kind": "write", "number": n, "moment": m}  SIGKILL in the n-th checkpoint that this process writes: "before" its
        first byte, "torn" with half of the file in place, "inside" the write, "after" it
The answer is the exit status, negative where a signal ended the process.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"


def kill_self() -> None:
    """SIGKILL, as the system or a scheduler would send it."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_validation(number: int) -> None:
    """Arrange for the end in the n-th validated batch."""
    from lightning.pytorch.loops import _EvaluationLoop

    step, seen = _EvaluationLoop._evaluation_step, []

    def evaluation_step(*arguments):
        seen.append(1)
        if len(seen) == number:
            kill_self()
        return step(*arguments)

    _EvaluationLoop._evaluation_step = evaluation_step


def kill_in_write(number: int, moment: str) -> None:
    """Arrange for the end in the n-th checkpoint written."""
    import torch
    from lightning.pytorch.strategies import Strategy

    save, seen = Strategy.save_checkpoint, []

    def save_checkpoint(strategy, checkpoint, filepath, storage_options=None):
        seen.append(1)
        if len(seen) != number:
            return save(strategy, checkpoint, filepath, storage_options)
        if moment == "before":
            kill_self()
        if moment == "inside":
            write = torch.save
            torch.save = lambda *a, **k: (write(*a, **k), kill_self())
        save(strategy, checkpoint, filepath, storage_options)
        if moment == "torn":
            with open(filepath, "r+b") as file:
                file.truncate(os.path.getsize(filepath) // 2)
        kill_self()

    Strategy.save_checkpoint = save_checkpoint


def tell_first_batch(pipe: int) -> None:
    """Write one byte when training has begun its first batch."""
    from nemo_codert.training.resume import ResumeState

    begin = ResumeState.on_train_batch_start

    def on_train_batch_start(self, *arguments):
        os.write(pipe, b"1")
        return begin(self, *arguments)

    ResumeState.on_train_batch_start = on_train_batch_start


def child(train, command: dict, pipe: int) -> None:
    """One run of the script; never returns."""
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    fault, status = command["fault"] or {"kind": None}, 0
    if fault["kind"] == "after":
        tell_first_batch(pipe)
    elif fault["kind"] == "validation":
        kill_in_validation(fault["number"])
    elif fault["kind"] == "write":
        kill_in_write(fault["number"], fault["moment"])
    sys.argv = [str(SCRIPT), *command["arguments"]]
    try:
        train.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
        print(end.code)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def run(train, command: dict) -> int:
    """Start one process, kill it where it is to be killed from here; its exit status."""
    told, tell = os.pipe()
    process = os.fork()
    if process == 0:
        child(train, command, tell)
    os.close(tell)
    fault = command["fault"]
    if fault and fault["kind"] == "after" and os.read(told, 1):
        time.sleep(fault["seconds"])
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(told)
    return os.waitstatus_to_exitcode(status)


def serve() -> None:
    """Answer commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    import torch

    torch.set_num_threads(1)
    from nemo_codert.cli import train  # its imports are what costs time

    print("ready", file=answers)
    for line in sys.stdin:
        print(run(train, json.loads(line)), file=answers)


if __name__ == "__main__":
    serve()
