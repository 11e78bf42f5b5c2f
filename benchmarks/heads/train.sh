#!/usr/bin/env bash
# Train the head of benchmarks/heads/smollm2-135m again, in the three turns that it was trained in:
#     benchmarks/heads/train.sh [FOLDER]
# About five hours on two cores and 9 GB of disk. Interrupted, it goes on where it was; the head
# is FOLDER/third, by default build/recipe/third.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/recipe}
heads=benchmarks/heads
specplug=.venv/bin/specplug
model=$("$specplug" pull smollm2-135m | tail -n 1)

# turn NAME BEFORE OPTION… : what the turn before has read need not be read again.
turn() {
  local output=$folder/$1 before=$folder/$2
  shift 2
  [ ! -e "$output" ] || return 0
  if [ -e "$before.work" ] && [ ! -e "$output.work" ]; then
    mkdir "$output.part"
    cp -al "$before.work/answers" "$before.work/target.bundle" "$output.part"
    rm -f "$output.part/answers/complete"
    mv "$output.part" "$output.work"
  fi
  "$specplug" distill "$model" --prompts $heads/prompts.jsonl --prompts $heads/answers.jsonl.gz \
    --precision w8a8 --keep-work -o "$output" "$@"
}

mkdir -p "$folder"
rm -rf "$folder"/*.part
own=(--prompts $heads/conversations.jsonl.gz)
turn first none --epochs 2 --learning-rate 1.5e-3
turn second first "${own[@]}" --start-from "$folder/first" --epochs 1 --learning-rate 8e-4
turn third second "${own[@]}" --start-from "$folder/second" --vocabulary 8192 --epochs 2 \
  --learning-rate 8e-4 --eight-bits
