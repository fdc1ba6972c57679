#!/usr/bin/env bash
# One linear layer, 14336 x 4096: scrimp in every format, PyTorch, and DeepSparse where it is installed, in turn.
#
#   benches/linear/run.sh [THREADS]        default 2; results in target/bench/linear.jsonl, a table on stdout
#
# PYTHON is an interpreter with torch; DEEPSPARSE_PYTHON one with deepsparse 1.8 (an old numpy, so an environment of its own:
# python3 -m venv DIR && DIR/bin/pip install deepsparse==1.8.0). Without them their rows are left out, and said so.
set -euo pipefail
cd "$(dirname "$0")/../.."
threads=${1:-2}
python=${PYTHON:-python3}
out=target/bench/linear.jsonl
mkdir -p target/bench
: > "$out"
[ -n "${SCRIMP:-}" ] || cargo build --release -p scrimp
scrimp=${SCRIMP:-target/release/scrimp}
rounds=${ROUNDS:-3}

scrimp_line() { # batch sparsity formats
    "$scrimp" bench linear --threads "$threads" --batch "$1" --sparsity "$2" --formats "$3" --json |
        sed "s/^{/{\"engine\":\"scrimp\",\"batch\":$1,\"sparsity\":$2,\"threads\":$threads,/" >> "$out"
}

for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    for batch in 1 8 32; do
        scrimp_line $batch 0.5 bf16,int8,int4,sparse-bf16,sparse-int8,sparse-int4
        if "$python" -c 'import torch' 2> /dev/null; then
            "$python" benches/linear/torch_linear.py "$threads" $batch >> "$out"
        else
            echo "no torch in $python: its rows are left out" >&2
        fi
    done
    scrimp_line 1 0.8 sparse-bf16,sparse-int8,sparse-int4
    if [ -n "${DEEPSPARSE_PYTHON:-}" ]; then
        "$DEEPSPARSE_PYTHON" benches/linear/deepsparse_linear.py "$threads" >> "$out"
    fi
done
python3 benches/linear/report.py "$out"
