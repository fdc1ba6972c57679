#!/bin/sh
# N streams of 64 tokens from scrimp serve, twice, then from OpenVINO GenAI. usage: throughput.sh MODEL.gguf N PYTHON-WITH-OPENVINO
set -eu
model=$1 n=$2 python=$3
scrimp=${SCRIMP:-target/release/scrimp} url=http://127.0.0.1:8472
$scrimp serve "$model" --port 8472 --log off --no-prefix-caching & server=$!
trap 'kill $server' EXIT
until $scrimp bench serve --url $url --requests 1 --concurrency 1 --tokens 8 > /dev/null 2>&1; do sleep 0.2; done
for _ in 1 2; do
    $scrimp bench serve --url $url --requests 2 --concurrency 1 --tokens 64 --json
    $scrimp bench serve --url $url --requests "$n" --concurrency "$n" --tokens 64 --json
done
"$python" "$(dirname "$0")/openvino_batch.py" "$model" "$n" 64
