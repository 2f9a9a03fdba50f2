"""Compiled kernels on torch's own threads, which are idle or waiting between two of torch's calls.

Any other threads would compete with them: after each call OpenMP's threads spin for some milliseconds in case more
work follows. torch's threads belong to the OpenMP runtime that torch is linked to, which compiled code can call too.
`_fork` uses internals of Numba's compiler (`numba.core`); a version without them fails at import or compilation, and
the losses are then computed by torch's functions (`cpu_kernels`). Imports torch, numba, llvmlite, `torch_symbols`.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.core.typing import Signature
from numba.extending import intrinsic

from nemo_codert.losses.cpu.torch_symbols import PREFIX, offer, torch_functions

FORK, THREAD, THREADS = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"
BYTES, NUMBER = ir.IntType(8).as_pointer(), ir.IntType(32)


def _openmp() -> list[Any] | None:
    """Return the three functions of torch's OpenMP runtime; None where torch has another runtime, or none.

    A preloaded runtime is torch's too.
    """
    return torch_functions((FORK, THREAD, THREADS), preloaded=True)


def _on_this_thread() -> list[Any]:
    """Return three functions that replace a missing OpenMP runtime: all work is done by the calling thread."""
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    fork = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    number = ctypes.CFUNCTYPE(ctypes.c_int)
    return [fork(lambda run, data, threads, flags: task(run)(data)), number(lambda: 0), number(lambda: 1)]


_functions = _openmp() or _on_this_thread()
for _name, _function in zip((FORK, THREAD, THREADS), _functions, strict=True):
    offer(_name, _function)


def threads_for(shares: int) -> int:
    """Return the number of threads for a kernel with so many shares of work: at most torch's number of threads."""
    return min(torch.get_num_threads(), shares)


@intrinsic
def _fork(typing_context, body, arguments, threads):  # noqa: ANN001, ANN202  (Numba's types of the arguments)
    """Call body(thread, number of threads, *arguments) on each thread; the result is not 0 if one of them raised."""
    call = body.get_call_type(typing_context, (types.int32, types.int32, *arguments), {})

    def of_module(builder: ir.IRBuilder, name: str, result: ir.Type, *parameters: ir.Type) -> ir.Function:
        return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), PREFIX + name)

    def generate(context: BaseContext, builder: ir.IRBuilder, signature: Signature, values: list) -> ir.Value:
        _, data, count = values
        module, shared = builder.module, ir.LiteralStructType([NUMBER, data.type])  # faults, arguments
        name = module.get_unique_name("on_each_thread")
        task = ir.Function(module, ir.FunctionType(ir.VoidType(), [BYTES]), name)
        task.linkage = "internal"
        inside = ir.IRBuilder(task.append_basic_block())
        record = inside.bitcast(task.args[0], shared.as_pointer())
        given = inside.load(inside.gep(record, [NUMBER(0), NUMBER(1)]))
        place = [inside.call(of_module(builder, each, NUMBER), []) for each in (THREAD, THREADS)]
        compiled = body.dispatcher.get_compile_result(call)
        context.active_code_library.add_linking_library(compiled.library)
        function = context.declare_function(module, compiled.fndesc)
        passed = [*place, *(inside.extract_value(given, i) for i in range(len(arguments)))]
        status, _ = context.call_conv.call_function(inside, function, call.return_type, call.args, passed)
        with inside.if_then(status.is_error, likely=False):
            inside.store(NUMBER(1), inside.gep(record, [NUMBER(0), NUMBER(0)]))
        inside.ret_void()

        record = cgutils.alloca_once(builder, shared)
        faults = builder.gep(record, [NUMBER(0), NUMBER(0)])
        builder.store(NUMBER(0), faults)
        builder.store(data, builder.gep(record, [NUMBER(0), NUMBER(1)]))
        fork = of_module(builder, FORK, ir.VoidType(), task.type, BYTES, NUMBER, NUMBER)
        builder.call(fork, [task, builder.bitcast(record, BYTES), count, NUMBER(0)])
        return builder.load(faults)

    return types.int32(body, arguments, types.int32), generate


@njit(nogil=True, inline="always")
def on_torch_threads(body: Callable, arguments: tuple, threads: int) -> None:
    """Call body(thread, number of threads, *arguments), a jitted function, on several threads at the same time.

    Called by compiled code. OpenMP may grant fewer threads than requested: body gets the granted number. Raises
    MemoryError where one of several calls raised an error: its class is lost, and a kernel should fail for want of
    memory only.
    """
    if threads == 1:  # a direct call: inside a team of one thread, BLAS would start threads of its own
        body(0, 1, *arguments)
    elif _fork(body, arguments, threads):
        raise MemoryError("a kernel of a loss failed on one of its threads, most likely for want of memory")
