#!/usr/bin/env bash
# Builds the peers' virtual environment: llama.cpp for this very CPU, and OpenVINO GenAI.
# usage: setup.sh DIR     (about 10 minutes on 2 cores; nothing happens where it is complete)
set -euo pipefail
dir=${1:?usage: setup.sh DIR}
if "$dir/bin/python" -c 'import llama_cpp, openvino_genai' 2>/dev/null; then
  exit 0
fi
echo "setting up the peers in $dir (about 10 minutes)" >&2
python3 -m venv "$dir"
"$dir/bin/pip" install -q -U pip cmake ninja numpy
# The published wheels of llama-cpp-python do not use AVX-512: from source, for the CPU at hand.
CMAKE_ARGS=-DGGML_NATIVE=ON "$dir/bin/pip" install -q --no-binary llama-cpp-python llama-cpp-python==0.3.36
"$dir/bin/pip" install -q openvino-genai==2026.4.1.0
