"""Train a teacher and its student together, or either of them alone.

    python scripts/train.py --config-name=fsdd strategy=shared_kd \\
        model.train_ds.manifest_filepath=data/fsdd/train.json \\
        model.validation_ds.manifest_filepath=data/fsdd/dev.json \\
        model.tokenizer.dir=data/fsdd/tokenizer exp_manager.exp_dir=runs/fsdd

Strategies (conf/strategy): student, static, tandem, tandem_kd, shared, shared_kd, static_shared; and teacher, which
makes the checkpoint that the static ones take as model.codert.teacher_checkpoint=....

Everything goes into one folder, exp_manager.exp_dir/NAME/DATE: checkpoints (the best student by val_wer), curves,
the list of dropped utterances, `pair.nemo` (for more training, evaluation of both branches, export) and
`student.nemo`, a stock NeMo model, with its model card `student.md`. strategy=student leaves `lone_student.nemo` in
place of the pair, strategy=teacher `teacher.nemo` alone. With model.test_ds.manifest_filepath (a path or a list) the
trained models then transcribe these manifests: `predictions/{student,teacher}/MANIFEST.json` and
`MANIFEST_summary.json`, as scripts/evaluate.py writes.
"""

import sys

from nemo_codert.cli.console import fault, quieten_libraries

quieten_libraries()

import torch  # noqa: E402
from hydra.errors import InstantiationException  # noqa: E402
from lhotse.audio.utils import AudioLoadingError  # noqa: E402
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException  # noqa: E402
from nemo.core.config import hydra_runner  # noqa: E402
from omegaconf import DictConfig  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from nemo_codert.cli.console import keep_freed_memory  # noqa: E402
from nemo_codert.config.shipped import conf_folder  # noqa: E402
from nemo_codert.files.checkpoints import RefusedCheckpoint  # noqa: E402
from nemo_codert.training import run  # noqa: E402

# What NeMo, Lightning, Hydra and we raise for settings that cannot be used; OSError is of the paths among them.
LIBRARY_ERRORS = (OmegaConfBaseException, InstantiationException, MisconfigurationException)
USER_ERRORS = (ValueError, TypeError, OSError, *LIBRARY_ERRORS)
# What ends a training that has started: a full disk, a file to resume from, numbers that are not finite, lost audio.
FATAL_ERRORS = (OSError, RefusedCheckpoint, FloatingPointError, AudioLoadingError)


@hydra_runner(config_path=str(conf_folder()), config_name="fsdd")
def main(cfg: DictConfig) -> None:
    """Train as the config says; ends the process with one `error:` line where that is not possible."""
    if not torch.cuda.is_available():
        keep_freed_memory()
    try:
        trainer, model, folder = run.prepare(cfg)
    except USER_ERRORS as error:  # what a user wrote: one message, no traceback
        sys.exit(f"error: {fault(error)}")
    try:
        try:
            trainer.fit(model)
        except SIGTERMException:  # a SystemExit of status 0, as if the run were complete
            sys.exit(
                "error: SIGTERM ended this run. exp_manager.resume_if_exists=true goes on from its last checkpoint"
            )
        except BaseException:
            if trainer.global_step == 0:
                run.forget_run(cfg)
            raise
        if trainer.is_global_zero:
            run.finish(cfg, trainer, folder)
    except FATAL_ERRORS as error:  # one message, no traceback; earlier files are untouched
        sys.exit(f"error: {fault(error)}")


if __name__ == "__main__":
    main()
