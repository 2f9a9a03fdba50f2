"""The pair: a stock RNN-T (the teacher) with a student beside it, trained together or from a frozen teacher.

Swaminathan et al., arXiv:2106.07734. `training_step` reads as the data flow of the README:
features once -> both encoders -> encoder logits -> two RNN-T losses and the distillation term -> weighted sum.
B batch, S samples, F mel bins, T_in feature frames, T encoder frames, U target tokens, V vocabulary without blank.
"""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.metrics.wer import WER
from nemo.collections.asr.models import EncDecRNNTBPEModel, EncDecRNNTModel
from nemo.collections.asr.parts.submodules.rnnt_decoding import RNNTBPEDecoding
from nemo.utils.model_utils import convert_model_config_to_dict_config
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from nemo_codert.config.checked import CheckedConfig, checked_config
from nemo_codert.config.criteria import criteria_specs, reads_encoder_alone, teacher_transcribes
from nemo_codert.config.derived import rate_problem
from nemo_codert.config.model_kinds import is_pair
from nemo_codert.config.student_hears import student_hears_settings
from nemo_codert.config.teachers import HEAD_LOGITS, WITHOUT_GRADIENT
from nemo_codert.criteria import Criteria, PairParts
from nemo_codert.data.named_batches import WithNames, manifest_names
from nemo_codert.models.layer_copy import start_from_teacher
from nemo_codert.models.open_model import absent_teacher
from nemo_codert.models.safe_restoring import CheckedRestoring
from nemo_codert.models.stock_config import NETWORK_BLOCKS, stock_branch_config, student_block
from nemo_codert.models.stock_models import stock_model
from nemo_codert.models.stored_targets import target_problems, with_stand_in
from nemo_codert.models.teacher_weights import LoadRequest, load
from nemo_codert.modules.activation_checkpointing import checkpoint_layers
from nemo_codert.modules.checksums import pieces_sha256
from nemo_codert.modules.ctc_head import build_ctc_head
from nemo_codert.modules.encoder_geometry import EncoderGeometry, encoder_geometry
from nemo_codert.modules.encoder_logits import num_token_classes
from nemo_codert.modules.shared_modules import refer, student_generator
from nemo_codert.modules.student_hears import Draws, Features, StudentHears
from nemo_codert.modules.transducer import Batch, BranchOutput, Transducer
from nemo_codert.nemo_compat import is_being_restored, refuse_scaled_clipping, switch_cuda_graphs
from nemo_codert.teachers import Teacher, build_teacher
from nemo_codert.teachers.ema import Ema, kept_wide

PUBLIC_TARGET = "nemo_codert.models.EncDecCoDERTBPEModel"  # stays valid in saved files when modules move


class EncDecCoDERTBPEModel(CheckedRestoring, EncDecRNNTBPEModel):
    """Teacher and student RNN-T in one NeMo model.

    The inherited `encoder`, `decoder`, `joint`, `decoding` and `wer` are the teacher's. The student's are
    `student_encoder`, `student_decoder`, `student_joint`, `student_decoding` and `student_wer`. With
    `codert.share_decoder` the student's prediction network and prediction projection are the teacher's modules,
    reachable under the student's names and registered once.

    Args:
        cfg: a stock RNN-T model config plus the blocks `student` and `codert`, or one that is checked already
            (`nemo_codert.config.checked`).
        trainer: Lightning trainer, optional.

    Raises:
        ValueError: faults of the config (all listed), frame rates that cannot be bridged, a checkpoint that does
            not fit.

    Example:
        The pair of a shipped config, with a tokenizer made on the spot:

        >>> import tempfile
        >>> from hydra import compose, initialize_config_dir
        >>> from nemo_codert.config.shipped import conf_folder
        >>> from nemo_codert.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["put the small lamp to the bed"], tempfile.mkdtemp(), vocab_size=24)
        >>> with initialize_config_dir(str(conf_folder()), version_base=None):
        ...     cfg = compose("quickstart", [f"model.tokenizer.dir={tokenizer}"]).model
        >>> cfg.train_ds = cfg.validation_ds = None  # no data yet
        >>> pair = EncDecCoDERTBPEModel(cfg)
        >>> list(pair.criteria)  # the terms of the training loss
        ['rnnt_student', 'rnnt_teacher', 'encoder']
        >>> pair.student_decoder is pair.decoder  # the strategy of this config shares it
        True
        >>> type(pair.student_model()).__name__  # leaves the pair as a stock NeMo model
        'EncDecRNNTBPEModel'
    """

    has_finite_guard = False  # set by the trainer's FiniteGuard, which then decides on losses that are not finite

    def __init__(self, cfg: DictConfig | CheckedConfig, trainer: Trainer | None = None) -> None:
        if not isinstance(cfg, CheckedConfig):
            cfg = cfg if isinstance(cfg, DictConfig) else convert_model_config_to_dict_config(cfg)
            cfg = checked_config(with_stand_in(cfg), warns=not self._is_model_being_restored())
        cfg = cfg.model
        with open_dict(cfg):
            cfg.target = PUBLIC_TARGET
        super().__init__(cfg=cfg, trainer=trainer)
        self._build_student()
        if (logits := self.cfg.codert.teacher_logits) in HEAD_LOGITS:
            own = logits == "ctc_alone"
            self.ctc_decoder = build_ctc_head(self.cfg.aux_ctc.decoder, self.joint, own_classes=own)
        if self.cfg.codert.activation_checkpointing:
            trained = [self.student_encoder] if self.teacher_is_frozen else [self.encoder, self.student_encoder]
            checkpoint_layers(*trained)
        hears, rate = self.cfg.codert.student_hears, self.cfg.preprocessor.get("sample_rate", 16000)
        self.student_hears = hears and StudentHears(student_hears_settings(hears), rate)
        self._setup_losses()
        self._setup_student_decoding()
        self.loaded: dict[str, dict[str, Any]] = {}  # what came from checkpoints: branch -> source and counts
        self._teacher_has_weights = is_being_restored()
        if not is_being_restored():
            self.loaded = self._load_checkpoints()
            self._teacher_has_weights = "teacher" in self.loaded or self._is_averaged
            if self._is_averaged:
                self.teacher.start(self.student_transducer)
        if self.teacher_is_frozen:
            self._freeze_teacher()

    # ---- construction ----------------------------------------------------------------------------------------------

    @classmethod
    def from_config_dict(cls, config: DictConfig, trainer: Trainer | None = None) -> Any:
        # Overrides Serialization.from_config_dict: a stock model file restored through this class stays stock.
        if "target" in config and not is_pair(config):
            return EncDecRNNTBPEModel.from_config_dict(config, trainer)
        return super().from_config_dict(config, trainer)

    def _build_student(self) -> None:
        student = self.cfg.student
        with student_generator():
            self.student_encoder = self.from_config_dict(copy.deepcopy(student.encoder))
            self.student_geometry = self._geometry(self.student_encoder)
            self._build_student_output()
        teacher = self._geometry(self.encoder)
        if teacher.width != self.joint.encoder_hidden:
            raise ValueError(
                f"model.model_defaults.enc_hidden is {self.joint.encoder_hidden} but model.encoder makes "
                f"{teacher.width} channels: set enc_hidden to {teacher.width}"
            )
        if problem := rate_problem(teacher.stride, self.student_geometry.stride):
            raise ValueError(problem)
        self.teacher_frames_per_student_frame = self.student_geometry.stride // teacher.stride

    def _build_student_output(self) -> None:
        """Build prediction network and joint of the student, for the teacher's present vocabulary."""
        decoder_cfg = copy.deepcopy(self.cfg.student.decoder or self.cfg.decoder)
        joint_cfg = student_block(self.cfg, "joint")
        with open_dict(decoder_cfg), open_dict(joint_cfg):
            decoder_cfg.vocab_size = self.cfg.decoder.vocab_size
            joint_cfg.num_classes, joint_cfg.vocabulary = self.cfg.joint.num_classes, self.cfg.joint.vocabulary
            joint_cfg.jointnet.encoder_hidden = self.student_geometry.width
            joint_cfg.jointnet.pred_hidden = decoder_cfg.prednet.pred_hidden
        # Built also when it is then replaced by the teacher's: so the joint draws the same initial weights in every
        # strategy.
        decoder = self.from_config_dict(decoder_cfg)
        self.student_joint = self.from_config_dict(joint_cfg)
        block = self.cfg.student.aux_ctc
        self.student_ctc_decoder = build_ctc_head(block.decoder, self.student_joint) if block else None
        if not self.cfg.codert.share_decoder:
            self.student_decoder = decoder
            return
        refer(self, "student_decoder", self.decoder)
        refer(self.student_joint, "pred", self.joint.pred)

    def _geometry(self, encoder: nn.Module) -> EncoderGeometry:
        return encoder_geometry(encoder, self.cfg.preprocessor.features)

    def _setup_losses(self) -> None:
        # Also after change_vocabulary, where NeMo drops the loss name, its kwargs and the reduction.
        name, kwargs = self.extract_rnnt_loss_cfg(student_block(self.cfg, "loss"))
        self.loss = RNNTLoss(
            num_classes=num_token_classes(self.student_joint) - 1,
            loss_name=name,
            loss_kwargs=kwargs,
            reduction=self.cfg.get("rnnt_reduction", "mean_batch"),
        )
        parts = PairParts(
            self.cfg,
            self.student_transducer,
            self.teacher_transducer,
            self.student_ctc_decoder,
            self.teacher_frames_per_student_frame,
            self.loss,
        )
        with student_generator():  # parameters of the terms change no other initial weights
            self.criteria = Criteria(criteria_specs(self.cfg), parts)
        self.teacher: Teacher = build_teacher(self.teacher_transducer, self.cfg.codert)

    def _setup_student_decoding(self) -> None:
        self.student_decoding = RNNTBPEDecoding(
            decoding_cfg=student_block(self.cfg, "decoding"),
            decoder=self.student_decoder,
            joint=self.student_joint,
            tokenizer=self.tokenizer,
        )
        self.student_wer = WER(
            decoding=self.student_decoding,
            batch_dim_index=0,
            use_cer=self.cfg.get("use_cer", False),
            log_prediction=self.cfg.get("log_prediction", True),
            dist_sync_on_step=True,
        )

    def _load_checkpoints(self) -> dict[str, dict[str, Any]]:
        """Load the weights that the config names; returns what was loaded by branch, see `teacher_weights.load`."""
        loaded = {}
        if self.cfg.codert.teacher_checkpoint and (self.cfg.codert.teacher != "cached" or self._targets_are_encoded):
            loaded["teacher"] = load(self._teacher_request())
        if self.cfg.student.init_from:
            loaded["student"] = load(self._student_request())
        if self.cfg.student.init_from_teacher:
            networks, whole = (self.teacher_transducer, self.student_transducer), self.teacher_transcribes
            own = not self.cfg.codert.share_decoder
            loaded["student"] = start_from_teacher(*networks, decoder=own and whole, joint=whole)
        return loaded

    def _teacher_request(self) -> LoadRequest:
        return LoadRequest(
            name=self.cfg.codert.teacher_checkpoint,
            key="model.codert.teacher_checkpoint",
            branch="teacher",
            target=self.teacher_transducer,
            blocks={f"model.{part}": self.cfg[part] for part in NETWORK_BLOCKS},
            pieces=list(self.joint.vocabulary),
            front_end=self.preprocessor,
            durations=list(self.cfg.decoding.get("durations") or ()),
            encoder_alone=reads_encoder_alone(self.cfg.codert),
            encoder_sha256=self.teacher.cache.header.teachers[0].weights if self._targets_are_encoded else None,
        )

    def _student_request(self) -> LoadRequest:
        cfg, own = self.cfg, not self.cfg.codert.share_decoder
        blocks = {"model.student.encoder": cfg.student.encoder}
        of_joint = "model.student.joint" if cfg.student.joint else "model.joint"
        blocks |= {of_joint: student_block(cfg, "joint"), "model.preprocessor": cfg.preprocessor}
        if own:
            blocks["model.student.decoder"] = cfg.student.decoder or cfg.decoder
        return LoadRequest(
            name=cfg.student.init_from,
            key="model.student.init_from",
            branch="student",
            target=self.student_transducer,
            blocks=blocks,
            pieces=list(self.joint.vocabulary),
            front_end=self.preprocessor,
            durations=list(cfg.student.durations or ()),
            decoder=own,
        )

    # ---- the two branches ------------------------------------------------------------------------------------------

    @property
    def teacher_transducer(self) -> Transducer:
        """The teacher's networks; a hybrid's CTC head where that gives the encoder logits."""
        return Transducer(self.encoder, self.decoder, self.joint, getattr(self, "ctc_decoder", None))

    @property
    def student_transducer(self) -> Transducer:
        """The student's networks, shared ones included."""
        return Transducer(self.student_encoder, self.student_decoder, self.student_joint)

    @property
    def teacher_is_frozen(self) -> bool:
        """True where no gradient moves the teacher: `codert.teacher` is `frozen`, `cached` or `ema`."""
        return self.cfg.codert.teacher in WITHOUT_GRADIENT

    @property
    def _is_averaged(self) -> bool:
        return isinstance(getattr(self, "teacher", None), Ema)

    @property
    def teacher_transcribes(self) -> bool:
        """False where the teacher is stored targets, or an encoder (and CTC head) without a decoder."""
        return teacher_transcribes(self.cfg.codert)

    @property
    def _targets_are_encoded(self) -> bool:
        return self.cfg.codert.teacher == "cached" and self.teacher.cache.header.kind == "encoder"

    def _freeze_teacher(self) -> None:
        for network in self.teacher_transducer.networks():
            network.freeze()

    def train(self, mode: bool = True) -> "EncDecCoDERTBPEModel":
        # Overrides Module.train: a frozen teacher stays in eval mode (no dropout, no batch-norm drift).
        super().train(mode)
        if mode and self.teacher_is_frozen:
            for network in self.teacher_transducer.networks():
                network.eval()
        return self

    def unfreeze(self) -> None:
        # Overrides LightningModule.unfreeze: a frozen teacher stays frozen.
        super().unfreeze()
        if self.teacher_is_frozen:
            self._freeze_teacher()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        # Overrides Module.load_state_dict: marks a frozen teacher as initialised.
        result = super().load_state_dict(*args, **kwargs)
        self._teacher_has_weights = True
        return result

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "EncDecCoDERTBPEModel":
        # Overrides Module._apply: an averaged teacher stays in float32 where the pair becomes half precision.
        if self._is_averaged:
            networks = nn.ModuleList(self.teacher_transducer.networks())
            fn = kept_wide(fn, [*networks.parameters(), *networks.buffers()])
        return super()._apply(fn, recurse)

    # ---- data ------------------------------------------------------------------------------------------------------

    def _setup_dataloader_from_config(self, config: DictConfig) -> Any:
        # Overrides EncDecRNNTBPEModel._setup_dataloader_from_config: with `return_sample_id` the batches of lhotse's
        # loader hold the cuts, those of the classic loader the ids of the manifest's lines.
        if self.cfg.codert.teacher == "cached" and config is not None:
            config = OmegaConf.create({**config, "return_sample_id": True})  # stored targets are joined by id
        loader = super()._setup_dataloader_from_config(config)
        if loader is None or not config.get("return_sample_id"):
            return loader
        if config.get("use_lhotse"):
            getattr(loader.dataset, "dataset", loader.dataset).return_cuts = True
        elif (names := manifest_names(loader.dataset, config.get("manifest_filepath"))) is not None:
            loader.collate_fn = WithNames(loader.collate_fn, names)
        return loader

    # ---- training --------------------------------------------------------------------------------------------------

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps made so far; 0 without a trainer."""
        return self._trainer.global_step if self._trainer is not None else 0

    def on_fit_start(self) -> None:
        # Overrides ModelPT.on_fit_start: what cannot be trained is refused before the first step.
        self._refuse_unready()
        super().on_fit_start()

    def setup_optimizer_param_groups(self) -> None:
        # Overrides ModelPT.setup_optimizer_param_groups: an averaged teacher is not the optimizer's.
        super().setup_optimizer_param_groups()
        if self._is_averaged:
            averages = {id(parameter) for parameter in self.teacher_transducer.parameters()}
            for group in self._optimizer_param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in averages]

    def setup_optimization(self, *args: Any, **kwargs: Any) -> Any:
        # Overrides ModelPT.setup_optimization: an averaged teacher moves at the end of the optimizer's own step, which
        # runs once for the batches that are accumulated, and not at all where a loss scaler skips it.
        result = super().setup_optimization(*args, **kwargs)
        if self._is_averaged and self._optimizer is not None:
            self._optimizer.register_step_post_hook(self._move_average)
        return result

    def _move_average(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A step that FiniteGuard drops has no gradients; a fused optimizer is called for one that the scaler skips.
        dropped = all(parameter.grad is None for group in optimizer.param_groups for parameter in group["params"])
        if not dropped and not getattr(optimizer, "found_inf", None):
            self.teacher.follow(self.student_transducer)

    def training_step(self, batch: Sequence[Any], batch_nb: int) -> dict[str, torch.Tensor]:
        # Overrides EncDecRNNTModel.training_step: two branches, one set of features, named terms of the loss.
        batch, step = Batch.of(batch), self.optimizer_steps
        features, heard = self.branch_features(batch, step, batch_nb)  # one set for both but for `student_hears`
        of_student, of_teacher = self.criteria.layers(step)
        student = self.student_transducer.run(*heard, batch.transcript, batch.transcript_len, layers=of_student)
        needs_teacher = any(term.spec.needs_teacher for term in self.criteria.active(step))
        teacher = self.teacher.output(*features, batch, student, of_teacher) if needs_teacher else None
        losses = self.codert_losses(student, teacher, batch, step)
        self._keep_losses(losses, step)
        if self._trainer is not None:
            self._log_training(losses, step)
        return {"loss": losses["train_loss"]}

    def extract_features(self, signal: torch.Tensor, signal_len: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [B, F, T_in] and their lengths [B] of a signal [B, S]; SpecAugment in training mode."""
        features, features_len = self.preprocessor(input_signal=signal, length=signal_len)
        if self.spec_augmentation is not None and self.training:
            features = self.spec_augmentation(input_spec=features, length=features_len)
        return features, features_len

    def branch_features(self, batch: Batch, step: int, batch_nb: int) -> tuple[Features, Features]:
        """Return features and lengths of the teacher and of the student: the same, unless `student_hears` is set.

        Args:
            batch: the batch. batch_nb: its number, of a step of several batches.
            step: optimizer step.
        """
        if self.student_hears is None:
            features = self.extract_features(batch.signal, batch.signal_len)
            return features, features
        draws = Draws.now(batch.signal.device, self.spec_augmentation)
        features = self.extract_features(batch.signal.clone(), batch.signal_len)  # NeMo adds dither in place
        at = step, batch_nb % (self._trainer.accumulate_grad_batches if self._trainer is not None else 1)
        given = batch.signal, batch.signal_len, self.extract_features, draws, features
        return features, self.student_hears.features(*given, at=at)

    def codert_losses(
        self, student: BranchOutput, teacher: BranchOutput | None, batch: Batch, step: int
    ) -> dict[str, torch.Tensor]:
        """Return the parts of the training loss under their log names; `train_loss` is their weighted sum.

        Args:
            student, teacher: outputs of both branches; teacher None leaves out the terms that need it.
            batch: the batch that they were computed from.
            step: optimizer step, for the schedules of the terms.
        """
        active = [term for term in self.criteria.active(step) if teacher is not None or not term.spec.needs_teacher]
        everything = with_text = student, teacher, batch
        if (labelled := batch.labelled()) is not None:  # the others train the terms that need no text
            active = [term for term in active if len(labelled) or not term.spec.needs_text]
            with_text = tuple(part and part.rows(labelled) for part in everything)
        losses = {term.spec.log_name: term(*(with_text if term.spec.needs_text else everything)) for term in active}
        loss = sum(term.spec.weight_at(step) * losses[term.spec.log_name] for term in active)
        if not active or (torch.distributed.is_initialized() and len(active) < len(self.criteria)):
            # Gradients of 0 for what no term reads: DistributedDataParallel waits for those of every parameter.
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self.parameters() if parameter.requires_grad)
        losses["train_loss"] = loss
        return losses

    def _keep_losses(self, losses: dict[str, torch.Tensor], step: int) -> None:
        """Keep the parts of a training loss as `step_losses`; refuse one that is not finite where nothing else would.

        Raises:
            FloatingPointError: names every part of a `train_loss` that is not finite, where the trainer has no
                `FiniteGuard` (nemo_codert.training) and NeMo's skip_nan_grad is off.
        """
        self.step_losses = {name: value.detach() for name, value in losses.items()}
        if self.has_finite_guard or self._skip_nan_grad or torch.isfinite(losses["train_loss"]):
            return
        parts = {name: float(value) for name, value in losses.items()}
        raise FloatingPointError(
            f"step {step}: the training loss is not finite ({parts}). Lower the learning rate, look for broken audio, "
            "or skip such steps: give the trainer the callback nemo_codert.training.finite_guard.FiniteGuard('skip')"
        )

    def _refuse_unready(self) -> None:
        """Refuse to train a pair that lacks something.

        Raises:
            ValueError: a frozen teacher without weights; steps that are to be skipped under a trainer without the
                callback that does it.
        """
        if self.cfg.codert.teacher == "cached":
            self._refuse_targets()
        elif self.teacher_is_frozen and not self._teacher_has_weights:
            raise ValueError(
                "model.codert.teacher is frozen but model.codert.teacher_checkpoint is null: nothing to learn from. "
                "Give the .nemo or pretrained name of a trained RNN-T"
            )
        if self.cfg.codert.non_finite.action == "skip" and not self.has_finite_guard:
            raise ValueError(
                "model.codert.non_finite.action is skip but the trainer has no FiniteGuard: give it the callback "
                "nemo_codert.training.finite_guard.FiniteGuard('skip'), as nemo_codert.training.run does, or set "
                "action to stop"
            )

    def _refuse_targets(self) -> None:
        """Raise ValueError for stored targets that cannot give what the terms of the loss ask of them."""
        pieces = pieces_sha256(list(self.joint.vocabulary))
        if problems := list(target_problems(self.cfg, self.teacher.cache.header, pieces)):
            raise ValueError("The stored targets cannot be used:\n  - " + "\n  - ".join(problems))

    def _log_training(self, losses: dict[str, torch.Tensor], step: int) -> None:
        self.log("train_loss", losses["train_loss"], prog_bar=True)
        self.log_dict(
            {
                # A term that is over: Lightning would write its last value again if there were none.
                **{spec.log_name: math.nan for spec in self.criteria.over(step)},
                **{name: value for name, value in losses.items() if name != "train_loss"},
                **self.criteria.weights(step),
                "learning_rate": self._optimizer.param_groups[0]["lr"],
                "global_step": torch.tensor(step, dtype=torch.float32),
            }
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Overrides LightningModule.configure_gradient_clipping: each branch by its own norm, so that a large teacher
        # gradient never scales the student's step. Shared modules count with the teacher.
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        refuse_scaled_clipping(self._trainer, optimizer)
        teacher = self.teacher_transducer.parameters()
        taken = {id(parameter) for parameter in teacher}
        student = [p for p in self.student_transducer.parameters() if id(p) not in taken]
        student += self.student_ctc_decoder.parameters() if self.student_ctc_decoder else []
        teacher += self.criteria.parameters_of("teacher")
        student += self.criteria.parameters_of("student")
        for branch in (teacher, student):
            nn.utils.clip_grad_norm_(branch, gradient_clip_val)

    # ---- validation ------------------------------------------------------------------------------------------------

    def validation_pass(self, batch: Sequence[Any], batch_idx: int, dataloader_idx: int = 0) -> dict:
        # Overrides EncDecRNNTModel.validation_pass: loss and WER of the student, WER of the teacher beside it.
        batch = Batch.of(batch)
        features = self.extract_features(batch.signal, batch.signal_len)
        student = self.student_transducer.run(*features, batch.transcript, batch.transcript_len)
        measured = [("", self.student_wer, student)]
        if self.teacher_transcribes:
            measured.append(("_teacher", self.wer, self.teacher_transducer.run(*features)))
        logs = {}
        if self.compute_eval_loss:
            logs["val_loss"] = self.criteria["rnnt_student"](student, None, batch)
        for suffix, metric, branch in measured:
            metric.update(
                predictions=branch.encoded,
                predictions_lengths=branch.encoded_len,
                targets=batch.transcript,
                targets_lengths=batch.transcript_len,
            )
            wer, errors, words = metric.compute()
            metric.reset()
            logs.update({f"val_wer{suffix}": wer, f"val_wer{suffix}_num": errors, f"val_wer{suffix}_denom": words})
        if self._trainer is not None:
            self.log("global_step", torch.tensor(self._trainer.global_step, dtype=torch.float32))
        return logs

    def multi_validation_epoch_end(self, outputs: list[dict], dataloader_idx: int = 0) -> dict:
        # Overrides EncDecRNNTModel.multi_validation_epoch_end: the stock one would lose the teacher's WER.
        return _with_teacher_wer(super().multi_validation_epoch_end(outputs, dataloader_idx), outputs, "val")

    def multi_test_epoch_end(self, outputs: list[dict], dataloader_idx: int = 0) -> dict:
        # Overrides EncDecRNNTModel.multi_test_epoch_end: as above.
        return _with_teacher_wer(super().multi_test_epoch_end(outputs, dataloader_idx), outputs, "test")

    def maybe_enable_cuda_graphs(self, force_reinit: bool = False) -> bool:
        # Overrides ASRModel.maybe_enable_cuda_graphs: the student's decoder too.
        return super().maybe_enable_cuda_graphs(force_reinit) | switch_cuda_graphs(self.student_decoding, on=True)

    def disable_cuda_graphs(self) -> bool:
        # Overrides ASRModel.disable_cuda_graphs: the student's decoder too.
        return super().disable_cuda_graphs() | switch_cuda_graphs(self.student_decoding, on=False)

    # ---- what leaves the pair --------------------------------------------------------------------------------------

    def student_model(self, joint: str = "auto") -> EncDecRNNTModel:
        """Return the student as a stock NeMo model with copied weights, in eval mode, without the teacher.

        Args:
            joint: form of the stock joint that replaces an additive one, see `nemo_codert.modules.to_stock_joint`.

        Returns:
            An `EncDecRNNTBPEModel`, or an `EncDecHybridRNNTCTCBPEModel` where the config has `student.aux_ctc`.
        """
        cfg = stock_branch_config(self.cfg, "student", self.student_geometry.width)
        return stock_model(self, self.student_transducer, cfg, joint, self.student_ctc_decoder)

    def teacher_model(self, joint: str = "auto") -> EncDecRNNTBPEModel:
        """Return the teacher as a stock NeMo model with copied weights, in eval mode.

        Raises:
            ValueError: a teacher that does not transcribe.
        """
        if not self.teacher_transcribes:
            raise ValueError(f"there is no teacher model to make: {absent_teacher(self.cfg.codert)}")
        cfg = stock_branch_config(self.cfg, "teacher", self.joint.encoder_hidden)
        return stock_model(self, self.teacher_transducer, cfg, joint)

    def transcribe(self, *args: Any, **kwargs: Any) -> Any:
        # Overrides EncDecRNNTModel.transcribe: the student's text. A copy transcribes: the stock method would
        # switch modes and unfreeze modules of the pair.
        return self.student_model().transcribe(*args, **kwargs)

    def predict_step(self, batch: tuple[Any, ...], batch_idx: int, dataloader_idx: int = 0) -> list[tuple[Any, Any]]:
        # Overrides EncDecRNNTModel.predict_step: the student's text.
        signal, signal_len, _, _, sample_id = batch
        student = self.student_transducer.run(*self.extract_features(signal, signal_len))
        hypotheses = self.student_decoding.rnnt_decoder_predictions_tensor(
            encoder_output=student.encoded, encoded_lengths=student.encoded_len, return_hypotheses=True
        )
        sample_id = sample_id.cpu().numpy() if isinstance(sample_id, torch.Tensor) else sample_id
        return list(zip(sample_id, hypotheses, strict=True))

    def export(self, *args: Any, **kwargs: Any) -> Any:
        # Overrides Exportable.export: the student. A copy is exported: the stock method spoils the live model.
        return self.student_model().export(*args, **kwargs)

    def change_decoding_strategy(self, decoding_cfg: DictConfig | None, verbose: bool = True) -> None:
        # Overrides EncDecRNNTBPEModel.change_decoding_strategy: both branches.
        super().change_decoding_strategy(decoding_cfg, verbose=verbose)
        self._setup_student_decoding()
        self.student_joint.temperature = self.joint.temperature

    def change_vocabulary(
        self,
        new_tokenizer_dir: str | DictConfig,
        new_tokenizer_type: str,
        decoding_cfg: DictConfig | None = None,
    ) -> None:
        # Overrides EncDecRNNTBPEModel.change_vocabulary: also rebuilds the student, keeps sharing and loss settings.
        if self.teacher_is_frozen and not self._is_averaged:
            raise ValueError(
                "change_vocabulary: the teacher is frozen, its new prediction network and joint would never be "
                "trained. Set model.codert.teacher to co_trained"
            )
        if new_tokenizer_type != "bpe":
            raise ValueError(f"change_vocabulary: tokenizer type is {new_tokenizer_type!r}, wanted bpe")
        if not (Path(new_tokenizer_dir) / "tokenizer.model").is_file():
            raise ValueError(f"change_vocabulary: {str(new_tokenizer_dir)!r} has no tokenizer.model. Give its folder")
        super().change_vocabulary(new_tokenizer_dir, new_tokenizer_type, decoding_cfg)
        with student_generator():
            self._build_student_output()
        self.student_joint.to(self.joint.enc.weight)
        self.student_decoder.to(self.joint.enc.weight)
        if self.student_ctc_decoder:
            self.student_ctc_decoder.to(self.joint.enc.weight)
        self._setup_losses()
        self.criteria.to(self.joint.enc.weight)
        if self._is_averaged:
            self.teacher.start(self.student_transducer)
            self._freeze_teacher()
        self._setup_student_decoding()


def _with_teacher_wer(result: dict, outputs: list[dict], stem: str) -> dict:
    if f"{stem}_wer_teacher_num" not in outputs[0]:
        return result  # a teacher that does not transcribe
    errors = torch.stack([output[f"{stem}_wer_teacher_num"] for output in outputs]).sum()
    words = torch.stack([output[f"{stem}_wer_teacher_denom"] for output in outputs]).sum()
    result["log"][f"{stem}_wer_teacher"] = errors.float() / words
    return result
