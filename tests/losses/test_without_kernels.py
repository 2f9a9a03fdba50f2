"""Where the compiled CPU kernels cannot be built, torch's functions compute the same losses, after one warning."""

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import numba
import pytest
import torch

import nemo_codert.losses.cpu
from nemo_codert.losses import additive_lattice_kl, additive_rnnt_loss, additive_tdt_loss, cpu_kernels, joint_rnnt_loss
from nemo_codert.losses.cpu import additive, divergence, lattice_kernels, tdt_kernels
from tests.conftest import REPOSITORY
from tests.losses import test_tdt as tdt
from tests.losses.test_additive_rnnt import LOGITS, assert_exact, loss_and_gradients, random_batch, reference
from tests.losses.test_lattice_kl import SIDES, graphed
from tests.losses.test_lattice_kl import batch as divergence_batch
from tests.reference.rnnt_recursion import joint_losses

pytestmark = pytest.mark.unit

WARNING = "compiled CPU kernels of the losses cannot be used"


@pytest.fixture
def fresh(monkeypatch) -> Iterator[None]:
    """The state of a process that has not computed a loss: no kernels are imported, and no warning was logged."""

    def forget() -> None:
        cpu_kernels.lattice_kernels.cache_clear()
        cpu_kernels.tdt_kernels.cache_clear()
        cpu_kernels.additive_loss.cache_clear()
        cpu_kernels.additive_log_probs.cache_clear()
        cpu_kernels.lattice_divergence.cache_clear()
        cpu_kernels._causes.clear()

    package = vars(nemo_codert.losses.cpu)
    before = dict(package)
    for name in [name for name in sys.modules if name.startswith("nemo_codert.losses.cpu.")]:
        monkeypatch.delitem(sys.modules, name)
        package.pop(name.rpartition(".")[2], None)
    forget()
    yield
    forget()
    monkeypatch.undo()  # removes the modules that were imported meanwhile
    package.clear()
    package.update(before)


def without_numba(patch: pytest.MonkeyPatch) -> None:
    for name in ("numba", "llvmlite"):
        patch.setitem(sys.modules, name, None)


def with_another_numba(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(numba.extending, "intrinsic")


def without_openmp_or_a_replacement(patch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError("no libraries")

    patch.setattr(ctypes, "CDLL", refuse)
    patch.setattr(ctypes, "CFUNCTYPE", refuse)


def without_blas(patch: pytest.MonkeyPatch) -> None:
    def library(path: object) -> object:
        if path is not None and "libtorch" in str(path):
            raise OSError("no such library")
        return loaded(path)

    loaded = ctypes.CDLL
    patch.setattr(ctypes, "CDLL", library)
    patch.setitem(sys.modules, "scipy.linalg", None)


def with_a_blas_that_computes_something_else(patch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: object) -> None:
        compute(*arguments)
        losses = arguments[-2]
        losses[:] = 0.0

    imported = importlib.import_module(additive.__name__)  # by this test; stored code is for the types of one import
    compute = imported.additive_kernel
    patch.setattr(imported, "additive_kernel", wrong)


def without_a_compiler(patch: pytest.MonkeyPatch, folder: str) -> None:
    def refuse(*arguments: object) -> None:
        raise numba.core.errors.LoweringError("Failed in nopython mode pipeline")

    patch.setattr("numba.config.CACHE_DIR", folder)
    patch.setattr("numba.core.dispatcher._FunctionCompiler.compile", refuse)


CAUSES = {
    without_numba: "ModuleNotFoundError: import of numba",
    with_another_numba: "ImportError: cannot import name 'intrinsic'",
    without_openmp_or_a_replacement: "OSError: no libraries",
    without_blas: "ModuleNotFoundError: import of scipy.linalg",
    with_a_blas_that_computes_something_else: "ArithmeticError: the compiled loss and gradients are",
    without_a_compiler: "LoweringError: Failed in nopython mode pipeline",
}


@pytest.mark.parametrize("prevent, cause", CAUSES.items(), ids=[prevent.__name__ for prevent in CAUSES])
def test_torch_computes_the_loss_after_one_warning(fresh, monkeypatch, tmp_path, caplog, prevent, cause):
    prevent(*(monkeypatch, str(tmp_path)) if prevent is without_a_compiler else (monkeypatch,))
    for batch in (random_batch(scale=10.0), random_batch(2, 12, 5, 16, disagreement=200.0)):
        assert_exact(loss_and_gradients(batch, upstream=2.5, reduction="none"), reference(batch, upstream=2.5))
    wide = batch | {name: batch[name].double() for name in LOGITS}
    assert_exact(loss_and_gradients(wide, upstream=2.5, reduction="none"), reference(batch, upstream=2.5))
    logits = (batch.pop("encoder_logits")[:, :, None] + batch.pop("prediction_logits")[:, None]).requires_grad_()
    results, expected = [], []
    for losses, found in ((joint_rnnt_loss(logits, **batch, reduction="none"), results),
                          (joint_losses(logits, **batch), expected)):  # fmt: skip
        found += losses.detach(), torch.autograd.grad(losses.sum(), logits)[0].double()
    assert_exact(tuple(results), tuple(expected))
    assert caplog.text.count(WARNING) == 1 and cause in caplog.text
    assert "still exactly, but more slowly" in caplog.text


@pytest.mark.parametrize("change, message", [
    ({"targets": torch.full((3, 4), 5)}, r"differ from blank = 5, got \[5\]"),
    ({"targets": torch.full((3, 4), -1)}, r"got \[-1\]"),
])  # fmt: skip
def test_bad_targets_are_refused_there_too(fresh, monkeypatch, change, message):
    without_numba(monkeypatch)
    with pytest.raises(ValueError, match=message):
        additive_rnnt_loss(**(random_batch() | change))


def test_padding_of_targets_is_ignored_there_too(fresh, monkeypatch):
    without_numba(monkeypatch)
    batch = random_batch()
    expected = loss_and_gradients(batch)
    batch["targets"][torch.arange(4) >= batch["target_lengths"][:, None]] = -100
    torch.testing.assert_close(loss_and_gradients(batch), expected, rtol=0, atol=0)


def test_the_recursion_stays_compiled_where_only_the_additive_loss_cannot_be(fresh, monkeypatch):
    with_another_numba(monkeypatch)
    assert cpu_kernels.additive_loss(torch.float32) is None
    assert cpu_kernels.lattice_kernels() is not None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_first_loss_may_be_one_without_gradients(fresh, monkeypatch, caplog, mode):
    batch = random_batch()
    with mode():
        loss = additive_rnnt_loss(**batch)
    torch.testing.assert_close(loss, loss_and_gradients(batch)[0], rtol=0, atol=0)
    assert not caplog.text


def test_kernels_are_looked_up_once(fresh, monkeypatch):
    built: list[Callable] = []
    monkeypatch.setattr(cpu_kernels, "_built", lambda build: built.append(build))
    for _ in range(3):
        loss_and_gradients(random_batch())
    assert len(built) == 2  # the additive loss in float32 and the recursion


@pytest.mark.parametrize("name", ["nemo_codert.losses", "nemo_codert.losses.lattice"])
def test_importing_the_losses_imports_no_kernels(name):
    kernels = ("numba", "llvmlite", "nemo_codert.losses.cpu.", "nemo_codert.losses.cuda")
    code = f"import sys, {name}; print([name for name in sys.modules if name.startswith({kernels})])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_torch_computes_the_divergence_after_one_warning(fresh, monkeypatch, caplog):
    def found() -> tuple[torch.Tensor, ...]:
        given = graphed(divergence_batch(dtype=torch.float32))
        value = additive_lattice_kl(**given)
        return value.detach(), *torch.autograd.grad(value, [given[side] for side in SIDES[:2]])

    compiled = found()
    assert cpu_kernels.lattice_divergence(torch.float32) is not None and not caplog.text
    cpu_kernels.lattice_divergence.cache_clear()
    without_numba(monkeypatch)
    for name in [name for name in sys.modules if name.startswith("nemo_codert.losses.cpu.")]:
        monkeypatch.delitem(sys.modules, name)
    torch.testing.assert_close(found(), compiled, rtol=1e-6, atol=1e-6)
    assert caplog.text.count(WARNING) == 1


def test_a_divergence_that_is_something_else_is_not_used(fresh, monkeypatch, caplog):
    kernels = importlib.import_module("nemo_codert.losses.cpu.divergence")
    compute = kernels.divergence_kernel

    def wrong(*arguments: object) -> None:
        compute(*arguments)
        arguments[-4][:] += 0.1

    monkeypatch.setattr(kernels, "divergence_kernel", wrong)
    assert cpu_kernels.lattice_divergence(torch.float32) is None
    assert "ArithmeticError: the compiled divergence and gradients are" in caplog.text


def test_torch_computes_the_tdt_loss_after_one_warning(fresh, monkeypatch, caplog):
    batch = tdt.random_batch(scale=10.0)
    without_numba(monkeypatch)
    assert_exact(tdt.results(additive_tdt_loss, batch, reduction="none"), tdt.reference(batch))
    assert caplog.text.count(WARNING) == 1


def test_a_tdt_recursion_that_is_something_else_is_not_used(fresh, monkeypatch, caplog):
    kernels = importlib.import_module("nemo_codert.losses.cpu.tdt_kernels")
    compute = kernels.tdt_kernel

    def wrong(*arguments: object) -> None:
        compute(*arguments)
        arguments[1][:] += 0.1

    monkeypatch.setattr(kernels, "tdt_kernel", wrong)
    assert cpu_kernels.tdt_kernels() is None
    assert "ArithmeticError: the compiled TDT recursion gives" in caplog.text


def test_log_probabilities_that_are_something_else_are_not_used(fresh, monkeypatch, caplog):
    kernels = importlib.import_module("nemo_codert.losses.cpu.additive")
    compute = kernels.log_prob_kernel

    def wrong(*arguments: object) -> None:
        compute(*arguments)
        arguments[-2][:] += 0.1

    monkeypatch.setattr(kernels, "log_prob_kernel", wrong)
    assert cpu_kernels.additive_log_probs(torch.float32) is None
    assert "ArithmeticError: the compiled log-probabilities and gradients are" in caplog.text


def test_the_trial_uses_the_kernels_of_the_process():
    assert cpu_kernels.lattice_kernels() is lattice_kernels
    assert cpu_kernels.tdt_kernels() is tdt_kernels
    assert cpu_kernels.lattice_divergence(torch.float32) is divergence.divergence_sums
    assert cpu_kernels.additive_loss(torch.float32) is additive.AdditiveLoss
    assert cpu_kernels.additive_log_probs(torch.float32) is additive.CompiledLogProbs
