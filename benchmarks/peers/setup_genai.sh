#!/usr/bin/env bash
# Make .peers/genai: ONNX Runtime GenAI in an environment of its own, and its models of SmolLM2
# in fp32 and int4 (its builder's documented CPU settings), from the weights specplug exports.
set -euo pipefail
cd "$(dirname "$0")/../.."
scripts/setup
peer=.peers/genai
mkdir -p "$peer"
if [ ! -e "$peer/installed" ]; then
  python3 -m venv "$peer/venv"
  "$peer/venv/bin/python" -m pip install --quiet -c constraints.txt \
    onnxruntime-genai==0.18.0 onnxruntime torch transformers onnx onnx-ir
  touch "$peer/installed"
fi
weights=$(.venv/bin/specplug pull smollm2-135m | tail -n 1)
[ -e "$peer/hf/config.json" ] || .venv/bin/python benchmarks/peers/write_hf_folder.py "$weights" "$peer/hf"
for precision in fp32 int4; do
  [ -e "$peer/$precision/genai_config.json" ] && continue
  HF_HUB_OFFLINE=1 "$peer/venv/bin/python" -m onnxruntime_genai.models.builder \
    -i "$peer/hf" -o "$peer/$precision" -p "$precision" -e cpu -c "$peer/cache" \
    --extra_options int4_accuracy_level=4 int4_block_size=32 >&2
done
