#!/bin/sh
# Create a virtual environment with the first Python >= 3.11 found. Usage: create_venv.sh DIRECTORY
# An interpreter named by the variable PYTHON3 is tried alone.
set -eu
target=$1

for candidate in ${PYTHON3:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        echo "Creating $target with $("$candidate" --version)"
        "$candidate" -m venv "$target"
        exit 0
    fi
done
echo "No Python >= 3.11 found (tried: ${PYTHON3:-python3 python3.13 python3.12 python3.11}). Install one, or name it: make setup PYTHON3=/path/to/python" >&2
exit 2
