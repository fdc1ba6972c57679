#!/usr/bin/env bash
# scrimp against llama.cpp and OpenVINO GenAI, interleaved, one command:
#   benches/llama_cpp/run.sh [options of compare.py, e.g. --rounds 5 --models smollm2,gemma3-270m --ik PATH/llama-bench]
# PEERS_VENV          an environment made by setup.sh (default: target/peers, made when missing)
# SCRIMP_TEST_MODELS  a directory with the model files (default: the ones that `scrimp pull` keeps in the cache)
# Results: target/bench/llama_cpp.jsonl (every measurement) and target/bench/llama_cpp.md (the table of RESULTS.md).
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release -p scrimp
venv=${PEERS_VENV:-target/peers}
benches/llama_cpp/setup.sh "$venv"
mkdir -p target/bench
exec "$venv/bin/python" benches/llama_cpp/compare.py --out target/bench/llama_cpp "$@"
