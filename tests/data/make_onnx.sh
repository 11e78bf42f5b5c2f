#!/usr/bin/env bash
# Make the graphs beside this file with the tools that users have: Optimum and onnxruntime-genai's
# builder, each in an environment of its own, from one tiny random Llama.
set -euo pipefail
cd "$(dirname "$0")/../.."
scripts/setup
here=tests/data
work=.peers/onnx
mkdir -p "$work"
export HF_HUB_OFFLINE=1 TQDM_DISABLE=1
environment() {
  [ -e "$work/$1/installed" ] && return
  python3 -m venv "$work/$1"
  HF_HUB_OFFLINE=0 "$work/$1/bin/python" -m pip install --quiet "${@:2}" "torch==2.13.0"
  touch "$work/$1/installed"
}
environment optimum optimum-onnx==0.1.0 onnxruntime onnx
environment genai -c constraints.txt onnxruntime-genai==0.18.0 onnxruntime transformers onnx onnx-ir

rm -rf "$work/checkpoint" "$here"/{optimum,genai-fp32,genai-int4,genai-fp16}
PYTHONPATH=tests .venv/bin/python - "$work/checkpoint" <<'PY'
import sys
from pathlib import Path
from tests_support.tiny import write_checkpoint
write_checkpoint(
    Path(sys.argv[1]),
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
)
PY
"$work/optimum/bin/optimum-cli" export onnx --model "$work/checkpoint" \
  --task text-generation-with-past "$here/optimum"
for precision in fp32 int4; do
  "$work/genai/bin/python" -m onnxruntime_genai.models.builder -m tiny -i "$work/checkpoint" \
    -o "$here/genai-$precision" -p "$precision" -e cpu -c "$work/cache" \
    --extra_options int4_accuracy_level=4 int4_block_size=32
done
# In fp16 as for GPUs: its graph for cpu in fp16 is one that onnxruntime-genai does not run itself.
"$work/genai/bin/python" -m onnxruntime_genai.models.builder -m tiny -i "$work/checkpoint" \
  -o "$here/genai-fp16" -p fp16 -e cuda -c "$work/cache"
