#!/usr/bin/env python3
"""A Python that has imported NeMo already: tests start many short processes, and the import is most of what each does.

As a program it takes the arguments of `python` (`-c CODE`, `-m MODULE` or `SCRIPT`, and arguments) and hands them,
with its folder, environment and open files, to a server, which forks a process for them: a new one in all but the
modules that are loaded and in what libraries find out once. Without a server, or with other arguments, it becomes the
ordinary interpreter.

    python tests/preloaded_python.py --serve SOCKET     # the server, which says "ready"; it ends with its input
"""

import array
import fcntl
import json
import os
import signal
import socket
import sys
import traceback

SOCKET = "PRELOADED_PYTHON_SOCKET"
INTERPRETER = "PRELOADED_PYTHON_INTERPRETER"
MOST_FILES = 200  # numbers of files that a process may be started with; the kernel hands over 253
PRELOADED = ("nemo.collections.asr.models", "nemo.utils.exp_manager", "nemo_codert.models", "matplotlib.pyplot")
# What a training, a test of a model or an export imports on its way.
PRELOADED += ("nemo_codert.training.resume", "nemo_codert.export.model_card", "nemo_codert.training.run_checks")
PRELOADED += ("librosa.filters", "smart_open", "tensorboard.plugins.hparams", "torch.utils.tensorboard")
PRELOADED += ("sentencepiece.sentencepiece_model_pb2", "torch.utils.serialization")


def client(arguments: list[str]) -> int:
    """Let the server run it; the exit status is the process's."""
    numbers = open_files()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "files": numbers}
        request = json.dumps(request).encode()
        head = len(request).to_bytes(4, "big")
        connection.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))])
        connection.sendall(request)
        status = connection.recv(4)
    return int.from_bytes(status, "big", signed=True) if status else 1


def open_files() -> list[int]:
    """Numbers of the files this process was started with: 0, 1, 2, and pipes where multiprocessing starts it."""
    others = []
    for number in range(3, MOST_FILES):
        try:
            os.fstat(number)
            others.append(number)
        except OSError:
            pass
    return [0, 1, 2, *others]


def remember() -> None:
    """What a process finds out once: modules' files, the grammars of Hydra and OmegaConf, Numba's own functions."""
    import inspect

    import numba
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    inspect.stack()
    OverridesParser.create().parse_overrides(["a.b=1", "+a.b='c d'", "~a", "a=[1,x.y,0.5]", "a=null", "a={b:true}"])
    OmegaConf.to_container(OmegaConf.create({"a": {"b": 1}, "c": "${a.b}", "d": "${.a.b}/${c}"}), resolve=True)
    numba.njit(lambda number: number + 1)(1)


def serve(path: str) -> None:
    """Fork one process a connection until the standard input ends."""
    import importlib
    import select

    null = os.open(os.devnull, os.O_RDWR)
    kept_free = [os.dup(null) for _ in range(null + 1, MOST_FILES)]  # libraries' own files get other numbers
    for name in PRELOADED:
        importlib.import_module(name)
    remember()
    for file in (null, *kept_free):
        os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                handle(connection)
            connection.close()


def handle(connection: socket.socket) -> None:
    """In a process of its own: fork the one asked for, wait for it, and end it when its client ends."""
    import select

    head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(MOST_FILES * array.array("i").itemsize))
    files = array.array("i")
    files.frombytes(ancillary[0][2])
    request = b""
    while len(request) < int.from_bytes(head, "big"):
        request += connection.recv(2**16)
    worker = os.fork()
    if worker == 0:
        connection.close()
        os._exit(run(json.loads(request), files))
    for file in files:
        os.close(file)
    done = os.pidfd_open(worker)
    if done not in select.select([done, connection], [], [])[0]:
        os.kill(worker, signal.SIGKILL)  # the client is gone
    status = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    try:
        connection.sendall(status.to_bytes(4, "big", signed=True))
    except OSError:
        pass  # nobody waits for it
    os._exit(0)


def run(request: dict, files: array.array) -> int:
    """In the process asked for: become it, and return its exit status."""
    import runpy

    aside = [fcntl.fcntl(file, fcntl.F_DUPFD, MOST_FILES) for file in files]  # none where another is to be
    for file in files:
        os.close(file)
    for number, file in zip(request["files"], aside, strict=True):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww"))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.executable = os.path.abspath(__file__)  # what it starts in turn is preloaded too
    first, *rest = request["arguments"]
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            sys.path[0] = os.path.dirname(os.path.abspath(first))
            runpy.run_path(first, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--serve"]:
        serve(arguments[1])
    elif SOCKET in os.environ and arguments and (arguments[0] in ("-c", "-m") or not arguments[0].startswith("-")):
        sys.exit(client(arguments))
    else:
        os.execv(os.environ[INTERPRETER], [os.environ[INTERPRETER], *arguments])


if __name__ == "__main__":
    main()
