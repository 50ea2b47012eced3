#!/usr/bin/env bash
# Sets up a CUDA 13.0 toolkit in DIR from NVIDIA's Python wheels: enough to check, build and link
# `--features cuda` on a machine without a GPU, a driver or an installed toolkit. Prints the lines
# to source:
#
#   eval "$(scripts/cuda-toolkit.sh DIR)"
#   cargo build --release --features cuda -p decoder-service -p trainer
#
# A second run with the same DIR only prints them. Needs pip, unzip and a C compiler. 0.7 GB to
# fetch, 1.2 GB on disk; `--check` as a second argument leaves out cuBLAS and cuRAND, which
# only linking wants: 0.2 GB. Kernels are compiled for CUDA_COMPUTE_CAP, 90 (H100, H200) unless
# it is set.
#
# CUDA 13.0 rather than a newer one: a driver refuses PTX of a toolkit newer than itself.
set -euo pipefail
dir=${1:?usage: cuda-toolkit.sh DIR [--check]}
check_only=${2:-}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
root=$dir/nvidia/cu13

fetch() {
    local wheels=$dir/wheels
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheels" "$@" >&2
    local wheel
    for wheel in "$wheels"/*.whl; do
        unzip -q -o "$wheel" -d "$dir"
    done
    rm -r "$wheels"
}

# Wheels have neither run bits nor the names that a linker looks for.
repair() {
    chmod +x "$root"/bin/* "$root"/nvvm/bin/*
    local library
    for library in "$root"/lib/lib*.so.*; do
        ln -sf "$(basename "$library")" "${library%%.so.*}.so"
    done
    [ -e "$root/lib64" ] || ln -s lib "$root/lib64"
}

# The driver's library, which only a machine with a GPU has: for the linker, every name that its
# header mentions.
stub_driver() {
    mkdir -p "$root/lib/stubs"
    grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$root/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' |
        "${CC:-cc}" -shared -x c - -Wl,-soname,libcuda.so.1 -o "$root/lib/stubs/libcuda.so"
}

if [ ! -e "$dir/.compiler" ]; then
    fetch nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
    repair
    stub_driver
    touch "$dir/.compiler"
fi
if [ "$check_only" != --check ] && [ ! -e "$dir/.libraries" ]; then
    fetch nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35
    repair
    touch "$dir/.libraries"
fi

cat <<LINES
export CUDA_HOME='$root'
export PATH='$root/bin':"\$PATH"
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
export CUDARC_CUDA_VERSION=13000
LINES
