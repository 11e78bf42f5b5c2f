#!/usr/bin/env bash
# Make the peers that benchmarks/race.py runs, each in an environment of its own under .peers/NAME:
#
#     benchmarks/peers/setup.sh [--pair] [genai] [openvino] [llama]
#
# All of them unless named; --pair makes their models of the Qwen2.5-Coder pair in place of
# SmolLM2's. What is there already is kept. transformers runs in the project's own .venv.
set -euo pipefail
cd "$(dirname "$0")/../.."

# environment PEER PACKAGE...: a virtual environment with these packages, and what pip chose.
environment() {
  local folder=.peers/$1
  [ -e "$folder/installed.txt" ] && return
  mkdir -p "$folder"
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt "${@:2}"
  "$folder/venv/bin/python" -m pip freeze --disable-pip-version-check > "$folder/installed.part"
  mv "$folder/installed.part" "$folder/installed.txt"
}

# built FOLDER COMMAND...: run the command on FOLDER.part unless FOLDER is there, and whole.
built() {
  [ -e "$1" ] && return
  rm -rf "$1.part"
  "${@:2}" "$1.part" >&2
  mv "$1.part" "$1"
}

# The weights in fp32, as a folder that transformers and genai's model builder read.
hf_folder() { built ".peers/hf/$(name "$1")" .venv/bin/python benchmarks/peers/write_hf_folder.py "$1"; }

name() { basename "$1" .gguf; }

# genai_model WEIGHTS PRECISION: with the builder's documented settings for CPUs.
genai_model() {
  built ".peers/genai/$(name "$1")-$2" env HF_HUB_OFFLINE=1 \
    .peers/genai/venv/bin/python -m onnxruntime_genai.models.builder \
    -i ".peers/hf/$(name "$1")" -p "$2" -e cpu -c .peers/genai/cache \
    --extra_options int4_accuracy_level=4 int4_block_size=32 -o
}

genai() {
  environment genai onnxruntime-genai==0.18.0 onnxruntime torch transformers onnx onnx-ir
  local weights
  for weights in "${models[@]}"; do
    genai_model "$weights" int4
    [ "$pair" ] || genai_model "$weights" fp32
  done
  if [ "$pair" ]; then
    built ".peers/genai/$(name "${models[0]}")-int4-draft" python3 \
      benchmarks/peers/write_genai_pair.py ".peers/genai/$(name "${models[0]}")-int4" \
      ".peers/genai/$(name "${models[1]}")-int4"
  fi
}

# OpenVINO reads the GGUF file itself; what it makes of it is kept for its logits, which only the
# layer below its text generation gives. It takes no GGUF file as a draft model.
openvino() {
  environment openvino openvino-genai==2026.4.1.0 openvino-tokenizers numpy
  built ".peers/openvino/$(name "${models[0]}")" \
    .peers/openvino/venv/bin/python benchmarks/peers/write_openvino_folder.py "${models[0]}"
}

# Built here, and never taken from pip's cache: only so is it for this machine's processor.
llama() {
  CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" environment llama \
    --no-cache-dir llama-cpp-python==0.3.36
}

pair="" chosen=()
for argument in "$@"; do
  case $argument in
    --pair) pair=yes ;;
    genai | openvino | llama) chosen+=("$argument") ;;
    *) echo "usage: $0 [--pair] [genai] [openvino] [llama]" >&2; exit 2 ;;
  esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=(genai openvino llama)
scripts/setup
models=()
for model in ${pair:+qwen2.5-coder-1.5b qwen2.5-coder-0.5b} ${pair:-smollm2-135m}; do
  [ "$model" = yes ] || models+=("$(.venv/bin/specplug pull "$model" | tail -n 1)")
done
mkdir -p .peers/hf
for model in "${models[@]}"; do
  hf_folder "$model"
done
for peer in "${chosen[@]}"; do
  "$peer"
done
