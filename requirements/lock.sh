#!/bin/sh
# Resolve requirements/*.txt into constraints.txt for every platform and Python >= 3.11. Usage: lock.sh PYTHON [--upgrade]
# Versions already in constraints.txt are kept where they still fit. uv resolves.
set -eu
# make gives the interpreter relative to the repository, which is left below.
case $1 in
    /*) python=$1 ;;
    */*) python=$PWD/$1 ;;
    *) python=$1 ;;
esac
upgrade=${2:-}
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The lists being resolved must not constrain the resolver's own installation.
unset PIP_CONSTRAINT PIP_BUILD_CONSTRAINT
"$python" -m pip install -qq --disable-pip-version-check --target "$work/uv" uv==0.13.8
[ ! -f constraints.txt ] || cp constraints.txt "$work/constraints.txt"
"$work/uv/bin/uv" pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate $upgrade \
    core.txt test.txt wandb.txt evaluation.txt cluster.txt --output-file "$work/constraints.txt"

{
    echo "# Exact versions of everything in core.txt, test.txt, wandb.txt, evaluation.txt and cluster.txt and of what they need."
    echo "# Written by \`make lock\`: edit those lists, not this one."
    echo "# Absent on purpose: the CUDA libraries, which the CUDA build of torch pins itself and the CPU build does without."
    grep -Ev '^(nvidia-|cuda-|triton==)' "$work/constraints.txt"
} > constraints.txt
