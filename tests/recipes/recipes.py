"""The keys of NeMo 3.0.0's transducer recipes, at sizes that train in seconds, with the blocks of a pair added.

Each recipe is named after its file in NeMo's `examples/asr/conf`. Keys and values are those of that file, but for the
sizes of networks and batches and the loader processes; `written` makes the plain YAML that a user would have.
"""

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

NAME = "recipe"
MODULES = "nemo.collections.asr.modules"
STUDENT_SIZES = {"n_layers": 1, "d_model": 16}

DATA = """
manifest_filepath: ???
sample_rate: ${model.sample_rate}
batch_size: 4
shuffle: false
use_start_end_token: false
num_workers: 0
pin_memory: true
"""

# What all of the Conformer recipes have.
SHARED = f"""
name: ???
model:
  sample_rate: 16000
  compute_eval_loss: false
  log_prediction: true
  model_defaults:
    enc_hidden: ${{model.encoder.d_model}}
    pred_hidden: 20
    joint_hidden: 20
  train_ds:
    manifest_filepath: ???
    sample_rate: ${{model.sample_rate}}
    batch_size: 4
    shuffle: true
    num_workers: 0
    pin_memory: true
    max_duration: 16.7
    min_duration: 0.1
    is_tarred: false
    tarred_audio_filepaths: null
    shuffle_n: 2048
    bucketing_strategy: synced_randomized
    bucketing_batch_size: null
  tokenizer:
    dir: ???
    type: bpe
  preprocessor:
    _target_: {MODULES}.AudioToMelSpectrogramPreprocessor
    sample_rate: ${{model.sample_rate}}
    normalize: per_feature
    window_size: 0.025
    window_stride: 0.01
    window: hann
    features: 80
    n_fft: 512
    frame_splicing: 1
    dither: 0.00001
    pad_to: 0
  spec_augment:
    _target_: {MODULES}.SpectrogramAugmentation
    freq_masks: 2
    time_masks: 10
    freq_width: 27
    time_width: 0.05
  encoder:
    _target_: {MODULES}.ConformerEncoder
    feat_in: ${{model.preprocessor.features}}
    feat_out: -1
    n_layers: 2
    d_model: 24
    subsampling: striding
    subsampling_factor: 4
    subsampling_conv_channels: -1
    ff_expansion_factor: 4
    self_attention_model: rel_pos
    n_heads: 8
    att_context_size: [-1, -1]
    att_context_style: regular
    xscaling: true
    conv_kernel_size: 31
    conv_norm_type: batch_norm
    dropout: 0.1
    dropout_emb: 0.0
    dropout_att: 0.1
  decoder:
    _target_: {MODULES}.RNNTDecoder
    normalization_mode: null
    random_state_sampling: false
    blank_as_pad: true
    prednet:
      pred_hidden: ${{model.model_defaults.pred_hidden}}
      pred_rnn_layers: 1
      t_max: null
      dropout: 0.2
  joint:
    _target_: {MODULES}.RNNTJoint
    log_softmax: null
    preserve_memory: false
    fuse_loss_wer: true
    fused_batch_size: 4
    jointnet:
      joint_hidden: ${{model.model_defaults.joint_hidden}}
      activation: relu
      dropout: 0.2
  decoding:
    strategy: greedy_batch
    greedy:
      max_symbols: 10
    beam:
      beam_size: 2
      return_best_hypothesis: false
      score_norm: true
      tsd_max_sym_exp: 50
      alsd_max_target_len: 2.0
  loss:
    loss_name: default
    warprnnt_numba_kwargs:
      fastemit_lambda: 0.0
      clamp: -1.0
  optim:
    name: adamw
    lr: 5.0
    betas: [0.9, 0.98]
    weight_decay: 1e-3
    sched:
      name: NoamAnnealing
      d_model: ${{model.encoder.d_model}}
      warmup_steps: 10000
      warmup_ratio: null
      min_lr: 1e-6
trainer:
  devices: -1
  num_nodes: 1
  max_epochs: 500
  max_steps: -1
  val_check_interval: 1.0
  accelerator: auto
  strategy: ddp
  accumulate_grad_batches: 1
  gradient_clip_val: 0.0
  precision: 32
  log_every_n_steps: 10
  enable_progress_bar: true
  num_sanity_val_steps: 0
  check_val_every_n_epoch: 1
  sync_batchnorm: true
  enable_checkpointing: false
  logger: false
  benchmark: false
exp_manager:
  exp_dir: null
  name: ${{name}}
  create_tensorboard_logger: true
  create_checkpoint_callback: true
  checkpoint_callback_params:
    monitor: val_wer
    mode: min
    save_top_k: 5
    always_save_nemo: true
  resume_from_checkpoint: null
  resume_if_exists: false
  resume_ignore_no_checkpoint: false
  create_wandb_logger: false
  wandb_logger_kwargs:
    name: null
    project: null
"""

# Parts that several recipes have, each a piece of YAML that is merged into the shared keys.
PARTS = {
    "conformer": """
model:
  train_ds: {use_start_end_token: false, trim_silence: false}
  encoder:
    causal_downsampling: false
    untie_biases: true
    pos_emb_max_len: 5000
    conv_context_size: null
  variational_noise: {start_step: 0, std: 0.0}
""",
    "fast": """
model:
  skip_nan_grad: false
  encoder:
    subsampling: dw_striding
    subsampling_factor: 8
    subsampling_conv_channels: 8
    conv_kernel_size: 9
    dropout_pre_encoder: 0.1
    stochastic_depth_drop_prob: 0.0
    stochastic_depth_mode: linear
    stochastic_depth_start_layer: 1
""",
    "fast_offline": """
model:
  rnnt_reduction: mean_volume
  train_ds: {bucketing_strategy: fully_randomized}
  encoder:
    causal_downsampling: false
    reduction: null
    reduction_position: null
    reduction_factor: 1
    untie_biases: true
    conv_context_size: null
  optim:
    lr: 5e-3
    sched: {name: CosineAnnealing, warmup_steps: 15000, min_lr: 5e-4}
""",
    "reduction": """
model:
  encoder: {reduction: null, reduction_position: null, reduction_factor: 1}
""",
    "streaming": """
model:
  preprocessor: {normalize: NA}
  encoder:
    causal_downsampling: true
    att_context_size: [70, 13]
    att_context_style: chunked_limited
    att_context_probs: null
    pos_emb_max_len: 5000
    conv_norm_type: layer_norm
    conv_context_size: causal
  loss: {warprnnt_numba_kwargs: {fastemit_lambda: 5e-3}}
trainer: {gradient_clip_val: 1.0}
""",
    "tdt": """
model:
  model_defaults: {tdt_durations: [0, 1, 2, 3, 4], num_tdt_durations: 5}
  joint: {num_extra_outputs: "${model.model_defaults.num_tdt_durations}"}
  decoding:
    model_type: tdt
    durations: ${model.model_defaults.tdt_durations}
  loss:
    loss_name: tdt
    tdt_kwargs:
      fastemit_lambda: 0.001
      clamp: -1.0
      durations: ${model.model_defaults.tdt_durations}
      sigma: 0.05
      omega: 0.1
""",
    "hybrid": f"""
model:
  train_ds: {{max_duration: 20}}
  aux_ctc:
    ctc_loss_weight: 0.3
    use_cer: false
    ctc_reduction: mean_batch
    decoder: {{_target_: {MODULES}.ConvASRDecoder, feat_in: null, num_classes: -1, vocabulary: []}}
    decoding: {{strategy: greedy}}
  interctc: {{loss_weights: [], apply_at_layers: []}}
trainer: {{gradient_clip_val: 1.0}}
""",
    "ddp_block": """
trainer:
  strategy: {_target_: lightning.pytorch.strategies.DDPStrategy, gradient_as_bucket_view: true}
""",
}

BLOCK = """{dilation: [1], kernel: [5], se: "${model.model_defaults.se}",
      separable: "${model.model_defaults.separable}", se_context_size: "${model.model_defaults.se_context_size}","""
INNER = f"""{BLOCK} filters: "${{model.model_defaults.filters}}", repeat: "${{model.model_defaults.repeat}}",
      dropout: "${{model.model_defaults.dropout}}", residual: true,
      kernel_size_factor: "${{model.model_defaults.kernel_size_factor}}","""
STRIDE = f"{INNER} stride: [2], stride_last: true, residual_mode: stride_add}}"
CONTEXTNET = f"""
model:
  model_defaults: {{filters: 24, repeat: 2, dropout: 0.1, separable: true, se: true, se_context_size: -1,
    kernel_size_factor: 1.0, enc_hidden: 20}}
  train_ds: {{trim_silence: false, tarred_shard_strategy: scatter, use_start_end_token: false}}
  tokenizer: {{type: "???"}}
  preprocessor: {{pad_to: 16, stft_conv: false}}
  encoder:
    _target_: {MODULES}.ConvASREncoder
    feat_in: 80
    activation: swish
    conv_mask: true
    init_mode: tds_uniform
    jasper:
    - {BLOCK} filters: "${{model.model_defaults.filters}}", repeat: 1, stride: [1], dropout: 0.0, residual: false}}
    - {INNER} stride: [1]}}
    - {STRIDE}
    - {STRIDE}
    - {STRIDE}
    - {BLOCK} filters: "${{model.model_defaults.enc_hidden}}", repeat: 1, stride: [1], dropout: 0.0, residual: false,
      kernel_size_factor: "${{model.model_defaults.kernel_size_factor}}"}}
  decoder: {{prednet: {{dropout: 0.1}}}}
  joint: {{fused_batch_size: 16, jointnet: {{dropout: 0.1}}}}
  decoding: {{beam: {{beam_size: 4, softmax_temperature: 1.0, tsd_max_sym_exp: 10, alsd_max_target_len: 5.0,
    maes_num_steps: 2, maes_prefix_alpha: 1, maes_expansion_beta: 2, maes_expansion_gamma: 2.3}}}}
  loss: {{warprnnt_numba_kwargs: {{fastemit_lambda: 0.001}}}}
  optim:
    name: novograd
    lr: 0.05
    betas: [0.9, 0.0]
    weight_decay: 0.001
    sched: {{name: CosineAnnealing, warmup_steps: 5000, warmup_ratio: null, min_lr: 1e-6, last_epoch: -1}}
trainer: {{devices: 1, max_epochs: 100, max_steps: null, accelerator: gpu, log_every_n_steps: 100,
  gradient_clip_val: 1.0}}
exp_manager: {{checkpoint_callback_params: {{save_top_k: 3}}, wandb_logger_kwargs: {{entity: null}}}}
"""

# Name of the recipe -> its parts, and its own keys.
RECIPES: dict[str, tuple[tuple[str, ...], str]] = {
    "conformer_transducer_bpe": (
        ("conformer", "ddp_block"),
        """
model:
  skip_nan_grad: false
  decoder: {prednet: {dropout: 0.1}}
  joint: {fused_batch_size: 16, jointnet: {dropout: 0.1}}
  decoding: {greedy: {max_symbols: 30}}
""",
    ),
    "conformer_transducer_bpe_streaming": (
        ("reduction", "streaming"),
        """
model:
  encoder: {att_context_size: [140, 27], untie_biases: true, dropout_pre_encoder: 0.1, stochastic_depth_drop_prob: 0.0,
    stochastic_depth_mode: linear, stochastic_depth_start_layer: 1}
  decoding: {beam: {beam_size: 5}}
  loss: {warprnnt_numba_kwargs: {fastemit_lambda: 1e-3}}
trainer: {max_epochs: 1000}
""",
    ),
    "fast-conformer_transducer_bpe": (
        ("fast", "fast_offline", "ddp_block"),
        "model: {encoder: {pos_emb_max_len: 5000, use_pytorch_sdpa: false, use_pytorch_sdpa_backends: []}}",
    ),
    "fast-conformer-long_transducer_bpe": (
        ("fast", "fast_offline"),
        """
model:
  encoder: {use_bias: true, self_attention_model: rel_pos_local_attn, global_tokens: 1, global_tokens_spacing: 1,
    global_attn_separate: false, att_context_size: [128, 128]}
  optim: {lr: 2.5e-3, sched: {min_lr: 1e-6}}
""",
    ),
    "fastconformer_transducer_bpe_streaming": (
        ("fast", "streaming"),
        """
model:
  train_ds: {max_duration: 20}
  encoder: {use_bias: true}
  interctc: {loss_weights: [], apply_at_layers: []}
trainer: {max_epochs: 1000}
""",
    ),
    "fastconformer_hybrid_transducer_ctc_bpe": (
        ("fast", "hybrid", "ddp_block"),
        """
model:
  encoder: {pos_emb_max_len: 5000}
  ipl: {m_updates: 0, restore_pc: true, manifest_filepath: "???", dataset_weights: 1, cache_manifest: "???",
    dropout: 0.1, n_l_updates: 0, p_cache: 0.2}
  aux_ctc:
    ctc_loss_weight: 0.4
    decoding: {strategy: beam, beam: {beam_size: 5, beam_alpha: 0.5, beam_beta: 1, return_best_hypothesis: false}}
trainer: {max_epochs: 1000}
""",
    ),
    "fastconformer_hybrid_transducer_ctc_bpe_streaming": (
        ("fast", "streaming", "hybrid", "ddp_block"),
        "{model: {encoder: {use_bias: true}}, trainer: {max_epochs: 1000}}",
    ),
    "fastconformer_hybrid_tdt_ctc_bpe": (
        ("fast", "reduction", "hybrid", "tdt", "ddp_block"),
        """
model:
  train_ds: {max_duration: 40}
  preprocessor: {features: 128}
  encoder: {causal_downsampling: false, untie_biases: true, pos_emb_max_len: 5000, conv_context_size: null}
  loss: {tdt_kwargs: {fastemit_lambda: 0.0, sigma: 0.02}}
""",
    ),
    "conformer_tdt_bpe": (
        ("conformer", "tdt"),
        "model: {skip_nan_grad: false, decoding: {strategy: greedy}, joint: {fused_batch_size: 16}}",
    ),
    "conformer_tdt_bpe_stateless": (
        ("conformer", "tdt"),
        f"""
model:
  skip_nan_grad: false
  decoder: {{_target_: {MODULES}.StatelessTransducerDecoder, context_size: 2, normalization_mode: layer}}
  decoding: {{strategy: greedy}}
  joint: {{fused_batch_size: 16}}
""",
    ),
    "contextnet_rnnt": ((), CONTEXTNET),
    "conformer_multiblank_transducer_bpe": (
        ("conformer",),
        """
model:
  skip_nan_grad: false
  joint: {num_extra_outputs: 3}
  decoding: {model_type: multiblank, big_blank_durations: [2, 4, 8]}
  loss:
    loss_name: multiblank_rnnt
    multiblank_rnnt_kwargs: {fastemit_lambda: 0.0, clamp: -1.0, big_blank_durations: [2, 4, 8], sigma: 0.05}
""",
    ),
}
# Keys that a recipe lacks although its parts have them.
ABSENT = {
    "fast-conformer_transducer_bpe": ["model.optim.sched.d_model"],
    "fast-conformer-long_transducer_bpe": ["model.optim.sched.d_model"],
    "contextnet_rnnt": [
        *("model.log_prediction", "model.encoder", "model.optim", "exp_manager.resume_from_checkpoint"),
        *(f"model.train_ds.{key}" for key in ("min_duration", "shuffle_n")),
        *(f"model.train_ds.{key}" for key in ("bucketing_strategy", "bucketing_batch_size")),
        *("trainer.enable_progress_bar", "trainer.num_sanity_val_steps"),
    ],
    "conformer_transducer_bpe_streaming": ["model.optim.sched.warmup_ratio", "trainer.benchmark"],
    "fastconformer_hybrid_tdt_ctc_bpe": ["model.loss.warprnnt_numba_kwargs"],
    "conformer_tdt_bpe": ["model.loss.warprnnt_numba_kwargs"],
    "conformer_tdt_bpe_stateless": [
        *("model.loss.warprnnt_numba_kwargs", "model.decoder.random_state_sampling", "model.decoder.blank_as_pad"),
    ],
    "conformer_multiblank_transducer_bpe": [
        *("model.loss.warprnnt_numba_kwargs", "model.variational_noise"),
        *("model.train_ds.use_start_end_token", "model.train_ds.trim_silence"),
    ],
}


def recipe(name: str) -> DictConfig:
    """The recipe of that name, without the blocks of a pair."""
    parts, own = RECIPES[name]
    cfg = OmegaConf.create(SHARED)
    for section in ("validation_ds", "test_ds"):
        cfg.model[section] = OmegaConf.create(DATA)
    cfg.model.test_ds.manifest_filepath = None
    cfg = OmegaConf.merge(cfg, *(OmegaConf.create(PARTS[part]) for part in parts))
    for path in ABSENT.get(name, ()):
        block, _, key = path.rpartition(".")
        del OmegaConf.select(cfg, block)[key]
    return OmegaConf.merge(cfg, OmegaConf.create(own), {"name": name})


def with_pair(cfg: DictConfig, **student: Any) -> DictConfig:
    """A recipe with the blocks that a user adds: a student of the teacher's own kind of encoder, and defaults."""
    cfg = copy.deepcopy(cfg)
    encoder = OmegaConf.to_container(cfg.model.encoder, resolve=False)
    if "jasper" in encoder:
        encoder = OmegaConf.to_container(recipe("fast-conformer_transducer_bpe").model.encoder, resolve=False)
    cfg.model.student = {"encoder": {**encoder, **STUDENT_SIZES}, **student}
    cfg.model.codert = {}
    return cfg


def written(cfg: DictConfig, folder: Path) -> Path:
    """The folder with the config as a YAML that has no `defaults:` and keeps its interpolations."""
    folder.mkdir(exist_ok=True)
    (folder / f"{NAME}.yaml").write_text(OmegaConf.to_yaml(cfg))
    return folder
