#!/usr/bin/env bash
# The study of docs/study/protocol.md on connected words, fold by fold: data, a teacher of the fold, its labels and
# targets, and the trainings that are compared. A step whose result is there is left out: after an interruption, run
# the same command again. Results are copied beside this file after every training, and a folder that has none yet starts
# from these. A teacher that is trained again on another machine gives other labels, which codert compare refuses to mix
# with those of before: train all of a fold's tenth on one machine.
#
#   bash docs/study/many_speakers/run.sh WORDS FSDD QUESTION [FOLD ...]
#
# WORDS: folder of isolated words. FSDD: free-spoken-digit-dataset, for the teachers alone. QUESTION: together (a, b) or
# tenth (d). FOLD: 0 to 4 (all). It runs in the current folder: data/ and runs/ are made there. JOBS: trainings at a time
# (1), of one thread each.
set -euo pipefail

words=$1 digits=$2 question=$3
folds=("${@:4}")
[ ${#folds[@]} -gt 0 ] || folds=(0 1 2 3 4)
study=$(cd "$(dirname "$0")" && pwd)
jobs=${JOBS:-1}
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 LHOTSE_AUDIO_BACKEND=LibsndfileBackend

labelled='{corpus}/train_labelled.json' unlabelled='{corpus}/train_unlabelled.json' labels='{corpus}/train_labels.json'
data=model.train_ds.manifest_filepath
targets='model.codert.teacher_cache={corpus}/targets'
half="{type: nemo, weight: 0.5, manifest_filepath"
case $question in
together) # a, b: the form and weight of docs/study/protocol.md
    kept=together baseline=student
    STRATEGIES=(student static_joint tandem_kd)
    slower='{lr: 2.0e-3}'
    OVERRIDES=(
        --override "tandem_kd:model.codert.distillation={joint: {at: joint, nodes: all, weight: 0.1, from_step: 750}}"
        --override "tandem_kd:+model.optim_param_groups={encoder: $slower, decoder: $slower, joint: $slower}"
        --override "static_joint:model.codert.teacher_checkpoint={corpus}/teacher.nemo"
    )
    ;;
tenth) # d: a tenth of the speakers with text. Half of each batch of cached@unlabelled has text.
    kept=tenth baseline=student@tenth
    STRATEGIES=(student@tenth student@labels cached@unlabelled cached@both)
    OVERRIDES=(
        --override "student@tenth:$data=$labelled"
        --override "student@labels:$data=[$labelled,$labels]"
        --override "cached@unlabelled:$targets" --override "cached@unlabelled:$data=null"
        --override "cached@unlabelled:+model.train_ds.input_cfg=[$half: '$labelled'}, $half: '$unlabelled'}]"
        --override "cached@both:$targets" --override "cached@both:$data=[$labelled,$labels]"
    )
    ;;
*)
    echo "QUESTION is $question: give together or tenth" >&2
    exit 2
    ;;
esac

prepare() { # FOLD
    [ -f "data/words_folds/$1/test.json" ] || codert prepare words --words-dir "$words" --fold "$1" --varied \
        --labelled-share 0.1 --by-speaker --output-dir "data/words_folds/$1"
    [ -f data/fsdd/train.json ] || codert prepare fsdd --fsdd-dir "$digits" --snr 0 15 --varied --output-dir data/fsdd
}

train_teacher() { # FOLD: 4,000 updates, with the digits, which no student gets
    local corpus=data/words_folds/$1
    [ -f "$corpus/teacher.nemo" ] && return
    codert train --config-name=words strategy=teacher seed="$1" --resume model.optim.lr=2e-3 \
        trainer.max_steps=4000 trainer.val_check_interval=500 \
        "$data=[$corpus/train.json,data/fsdd/train.json]" model.validation_ds.manifest_filepath="$corpus/dev.json" \
        model.tokenizer.dir="$corpus/tokenizer" exp_manager.exp_dir="runs/teachers/$1"
    cp "runs/teachers/$1/latest/teacher.nemo" "$corpus/teacher.nemo"
}

label() { # FOLD: texts for the nine tenths, and targets of all of train
    local corpus=data/words_folds/$1
    [ -f "$corpus/train_labels.json" ] || codert pseudo-label --model "$corpus/teacher.nemo" \
        --manifest "$corpus/train_unlabelled.json" --min-confidence 0.25 --output "$corpus/train_labels.json"
    [ -d "$corpus/targets" ] || codert cache --teachers "$corpus/teacher.nemo" --prior mean_prediction \
        --manifest "$corpus/train.json" --output "$corpus/targets"
}

compare() { # FOLD STRATEGY: train one strategy of the comparison in a fold
    mkdir -p "runs/$kept"
    for file in comparison.json results.csv predictions.jsonl.gz dev_wer.csv; do
        [ -f "runs/$kept/$file" ] || [ ! -f "$study/$kept/$file" ] || cp "$study/$kept/$file" "runs/$kept/"
    done
    codert compare --config-name words --data-dir data/words_folds --output-dir "runs/$kept" --own-seeds --seeds 0 \
        --folds "$1" --strategies "${STRATEGIES[@]}" --only "$2" --jobs "$jobs" --drop-models --against "$baseline" \
        "${OVERRIDES[@]}"
    mkdir -p "$study/$kept"
    for file in comparison.json results.csv predictions.jsonl.gz dev_wer.csv table.md; do
        cp "runs/$kept/$file" "$study/$kept/"
    done
}

for fold in "${folds[@]}"; do
    prepare "$fold"
    train_teacher "$fold"
    [ "$question" != tenth ] || label "$fold"
    for strategy in "${STRATEGIES[@]}"; do
        compare "$fold" "$strategy"
    done
done
