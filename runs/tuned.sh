#!/usr/bin/env bash
# From text to a model that answers: a base, fine-tuning, an adapter of the same, preferences made by running code, with
# three seeds, and pass@1 of every stage on held-out tasks. Two hours or so of one core. Stages that are done are skipped,
# and one that was stopped goes on.
#
#     runs/tuned.sh [SEED...]
#
# CODEMILL and PYTHON are the programs, those of .venv where they are not set. Another number of THREADS gives other bits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
codemill=${CODEMILL:-.venv/bin/codemill} python=${PYTHON:-.venv/bin/python} threads=${THREADS:-1}
out=runs/out/tuned base=runs/out/base/model
seeds=("${@:-0 1 2}")

# once FILE COMMAND...: runs the command unless the file is there.
once() {
  if [ ! -e "$1" ]; then echo "== ${*:2}"; "${@:2}"; fi
}
train() {
  once "$4" $codemill train "$1" "runs/tuned_$2.toml" --set "output=$out/$2-$3" --set "loop.seed=$3" --threads "$threads" "${@:5}"
}
evaluate() {
  once "$out/eval/$1.json" $python runs/tuned_eval.py --output "$out/eval/$1.json" "${@:2}"
}

once "$base" $codemill train pretrain runs/base.toml --threads "$threads"
mkdir -p "$out/eval"
once "$out/conversations.jsonl" $python runs/tuned_data.py --count 20000 --output "$out/conversations.jsonl"
once "$out/held_out.jsonl" $python runs/tuned_data.py --held-out --count 100 --output "$out/held_out.jsonl"
evaluate base "$base" --style base
evaluate base_chat "$base"
for seed in ${seeds[*]}; do
  train sft sft "$seed" "$out/sft-$seed/model"
  evaluate "sft-$seed" "$out/sft-$seed/model"
  once "$out/pairs-$seed.jsonl" $python runs/tuned_pairs.py "$out/sft-$seed/model" --seed "$seed" --output "$out/pairs-$seed.jsonl"
  train dpo dpo "$seed" "$out/dpo-$seed/model" --set "model=$out/sft-$seed/model" --set "data.train=$out/pairs-$seed.jsonl"
  evaluate "dpo-$seed" "$out/dpo-$seed/model"
done
for seed in ${seeds[*]}; do
  train sft lora "$seed" "$out/lora-$seed/adapter"
  evaluate "lora-$seed" "$base" --adapter "$out/lora-$seed/adapter"
done
$python runs/tuned_report.py "$out"
