"""Makes the files of an earlier version that test_earlier_versions.py loads: run in a checkout of that version.

    git worktree add /tmp/earlier COMMIT && cd /tmp/earlier
    PYTHONPATH=/tmp/earlier python .../tests/files/make_earlier_pair.py NAME OUTPUT_FOLDER

NAME.nemo and NAME.ckpt are a tiny pair after three updates on noise; NAME.json has outputs of both joints.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import sentencepiece
import torch
from omegaconf import OmegaConf

SENTENCES = "turn the light on,turn the right light off,play the next song,call ken in the shed,set the clock to ten"
SENTENCES = [*SENTENCES.split(","), "open the red door now", "what is the time", "stop the music please"]
STEPS, LEARNING_RATE = 3, 1e-3


def conformer(layers: int, channels: int) -> dict:
    """A tiny Conformer."""
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        **{"feat_in": 32, "feat_out": -1, "n_layers": layers, "d_model": channels},
        **{"subsampling": "dw_striding", "subsampling_factor": 4, "subsampling_conv_channels": 8},
        **{"ff_expansion_factor": 2, "self_attention_model": "rel_pos", "n_heads": 2, "att_context_size": [-1, -1]},
        **{"xscaling": False, "conv_kernel_size": 5, "conv_norm_type": "layer_norm"},
        **{"dropout": 0.0, "dropout_pre_encoder": 0.0, "dropout_emb": 0.0, "dropout_att": 0.0},
    }


def config(tokenizer: str) -> OmegaConf:
    """A shared pair with an additive joint."""
    target = "nemo.collections.asr.modules."
    front_end = {"sample_rate": 16000, "normalize": "per_feature", "window_size": 0.025, "window_stride": 0.01}
    network = {"pred_hidden": 16, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0}
    decoder = {"normalization_mode": None, "random_state_sampling": False, "blank_as_pad": True}
    joint = {"log_softmax": None, "jointnet": {"joint_hidden": 16, "activation": "relu", "dropout": 0.0}}
    return OmegaConf.create(
        {
            **{"sample_rate": 16000, "log_prediction": False, "compute_eval_loss": True},
            "model_defaults": {"enc_hidden": 16, "pred_hidden": 16, "joint_hidden": 16},
            "tokenizer": {"dir": tokenizer, "type": "bpe"},
            "preprocessor": {
                **{"_target_": f"{target}AudioToMelSpectrogramPreprocessor", **front_end},
                **{"features": 32, "n_fft": 512, "dither": 0.0, "pad_to": 0},
            },
            "encoder": conformer(layers=2, channels=16),
            "student": {"encoder": conformer(layers=1, channels=8)},
            "codert": {"teacher": "co_trained", "share_decoder": True, "distillation": {"weight": 0.1}},
            "decoder": {"_target_": f"{target}RNNTDecoder", **decoder, "prednet": network},
            "joint": {"_target_": "nemo_codert.modules.AdditiveRNNTJoint", **joint},
            "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 5}, "beam": {"beam_size": 2}},
            "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0}},
            "optim": {"name": "adamw", "lr": LEARNING_RATE},
        }
    )


def noise_batch(vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Signal [2, 9600] of noise, its lengths, random tokens [2, 4], their lengths."""
    generator = torch.Generator().manual_seed(1)
    signal = 0.1 * torch.randn(2, 9600, generator=generator)
    tokens = torch.randint(1, vocabulary, (2, 4), generator=generator)
    return signal, torch.tensor([9600, 8000]), tokens, torch.tensor([4, 3])


@torch.no_grad()
def outputs(model: torch.nn.Module) -> dict[str, list]:
    """Joint outputs of both branches for the first frames and tokens of the noise: [3, 3, V+1] each."""
    model.eval()
    signal, signal_len, tokens, tokens_len = noise_batch(model.joint.num_classes_with_blank - 1)
    features, features_len = model.preprocessor(input_signal=signal, length=signal_len)
    found = {}
    for branch, encoder, decoder, joint in (
        ("teacher", model.encoder, model.decoder, model.joint),
        ("student", model.student_encoder, model.student_decoder, model.student_joint),
    ):
        encoded, _ = encoder(audio_signal=features, length=features_len)
        predicted = decoder(targets=tokens, target_length=tokens_len)[0]
        logits = joint.joint(encoded.transpose(1, 2), predicted.transpose(1, 2))
        found[branch] = logits.log_softmax(-1)[0, :3, :3].double().tolist()
    return found


def main() -> None:
    """Makes the three files."""
    from nemo_codert.models import EncDecCoDERTBPEModel

    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="earlier_") as place:
        os.chdir(place)
        trained = {"model_prefix": "tokenizer", "vocab_size": 32, "model_type": "bpe"}
        trained |= {"bos_id": -1, "eos_id": -1, "normalization_rule_name": "identity"}  # of another, a table of 240 kB
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), minloglevel=2, **trained)
        Path("vocab.txt").write_text("".join(line.split("\t")[0] + "\n" for line in Path("tokenizer.vocab").open()))
        Path("tokenizer.vocab").unlink()
        model = EncDecCoDERTBPEModel(config(place))
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model.training_step(noise_batch(32), 0)["loss"].backward()
            optimizer.step()
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
        model.save_to(str(folder / f"{name}.nemo"))
        (folder / f"{name}.json").write_text(json.dumps(outputs(model)) + "\n")


if __name__ == "__main__":
    main()
