#!/usr/bin/env bash
# Cross-compiles ggml (llama.cpp, as in llama-cpp-python 0.3.36 on PyPI) and ggml_linear.c for the levels of count.py.
# usage: ggml.sh DIR     writes DIR/ggml_linear.{neon,dotprod,i8mm}; 10 minutes on 2 cores
# Needs aarch64-linux-gnu-gcc and -g++ (Debian: gcc-aarch64-linux-gnu g++-aarch64-linux-gnu).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?usage: ggml.sh DIR}
mkdir -p "$dir"
cd "$dir"
if [ ! -d llama_cpp_python-0.3.36 ]; then
  pip download -q --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
  tar xzf llama_cpp_python-0.3.36.tar.gz llama_cpp_python-0.3.36/vendor/llama.cpp/ggml
fi
ggml=llama_cpp_python-0.3.36/vendor/llama.cpp/ggml
src=$ggml/src cpu=$ggml/src/ggml-cpu
mkdir -p include
printf '#define GGML_VERSION "0"\n#define GGML_COMMIT "0"\n' > include/ggml-version.h
# The options of ggml's CMake files for a release build.
flags=(-w -c "-I$ggml/include" "-I$src" "-I$cpu" -Iinclude -D_GNU_SOURCE -DNDEBUG -DGGML_USE_CPU -DGGML_USE_CPU_REPACK
  -DGGML_USE_LLAMAFILE -DGGML_SCHED_MAX_COPIES=4)

compile() { # OUT FILE OPTIONS...
  [ -f "$1" ] && return
  local out=$1
  shift
  case $1 in
    *.c) aarch64-linux-gnu-gcc -std=gnu11 "${flags[@]}" "$@" -o "$out" ;;
    *) aarch64-linux-gnu-g++ -std=gnu++17 "${flags[@]}" "$@" -o "$out" ;;
  esac
}

# Files without products of matrices.
mkdir -p common
for file in "$src"/{ggml.c,ggml-alloc.c,ggml-backend.cpp,ggml-backend-meta.cpp,ggml-backend-reg.cpp,ggml-backend-dl.cpp} \
  "$src"/{ggml-threading.cpp,ggml-quants.c,ggml.cpp} \
  "$cpu"/{ops.cpp,binary-ops.cpp,unary-ops.cpp,traits.cpp,hbm.cpp,amx/amx.cpp,amx/mmq.cpp}; do
  if [ -f "$file" ]; then compile "common/$(basename "$file").o" "$file" -O1 -march=armv8-a; fi
done

level() { # LEVEL ARCHITECTURE
  mkdir -p "$1"
  for file in "$cpu"/{ggml-cpu.c,ggml-cpu.cpp,quants.c,repack.cpp,vec.cpp} "$cpu"/arch/arm/{quants.c,repack.cpp} \
    "$cpu/llamafile/sgemm.cpp" "$cpu"/tiled/*.cpp; do
    compile "$1/$(echo "${file#"$cpu"/}" | tr / _).o" "$file" -O3 "-march=$2"
  done
  aarch64-linux-gnu-gcc -O2 "-I$ggml/include" "$here/ggml_linear.c" -c -o "$1/main.o"
  aarch64-linux-gnu-g++ -static "$1"/*.o common/*.o -lpthread -ldl -lm -o "ggml_linear.$1"
}

level neon armv8-a
level dotprod armv8.2-a+dotprod+fp16
level i8mm armv8.6-a+i8mm+bf16+fp16+dotprod
