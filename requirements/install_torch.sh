#!/bin/sh
# Install the build of torch that fits this machine. Usage: install_torch.sh PYTHON auto|cpu|cuda
#
# Only torch itself is installed (--no-deps): its dependencies follow with core.txt under constraints.txt, and no other
# package is ever taken from torch's own index. `==X` is satisfied by X, X+cpu and X+cu130; `===X` by X alone.
set -eu
python=$1
build=$2
here=$(dirname "$0")
cpu_index=https://download.pytorch.org/whl/cpu

version=$(sed -n 's/^torch==//p' "$here/core.txt")
pip="$python -m pip install -qq --disable-pip-version-check --no-deps"

if [ "$build" = auto ]; then
    if command -v nvidia-smi >/dev/null 2>&1; then build=cuda; else build=cpu; fi
fi

install_cpu() {
    # macOS wheels carry no tag: the plain build is the CPU build.
    if [ "$(uname -s)" = Darwin ]; then
        $pip "torch===$version"
        return
    fi
    # First what pip is configured to see (PIP_FIND_LINKS, mirrors), then torch's own index, which may be out of reach.
    $pip "torch==$version+cpu" 2>/dev/null && return
    $pip --index-url "$cpu_index" --retries 0 --timeout 10 "torch==$version+cpu" 2>/dev/null && return
    echo "No CPU build of torch $version found (looked at pip's own sources and $cpu_index): taking the default build, which is larger."
    $pip "torch==$version"
}

case $build in
    cpu) echo "Installing torch $version, CPU build (for an NVIDIA GPU: make setup TORCH=cuda)"; install_cpu ;;
    cuda) echo "Installing torch $version, CUDA build (without a GPU: make setup TORCH=cpu)"; $pip "torch===$version" ;;
    *) echo "TORCH=$build: unknown build of torch. Write TORCH=auto, TORCH=cpu or TORCH=cuda." >&2; exit 2 ;;
esac
