#!/bin/sh
# Install packages, in the versions of PIP_CONSTRAINT. Usage: install.sh PYTHON -r LIST...
#
# uv takes less than half of pip's time and uses all cores. It does not read pip's settings, so those that say where
# packages come from are handed on. Whatever it cannot do, pip does.
set -eu
python=$1
shift
tools=$("$python" -c 'import sys; print(sys.prefix)')/.uv

# A setting of pip, from its variables before its files; several values in a line, with spaces between them.
setting() {
    "$python" -m pip config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" | head -n 1 | sed 's/\\n/ /g; s/^ *//'
}

by_uv() {
    [ -x "$tools/bin/uv" ] ||
        "$python" -m pip install -qq --disable-pip-version-check --target "$tools" uv==0.13.8 2>/dev/null || return 1
    index=$(setting index-url) more=$(setting extra-index-url) certificates=$(setting cert)
    links=$(setting find-links | tr ' ' ',')
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
    [ -z "$more" ] || export UV_INDEX="$more"
    [ -z "$links" ] || export UV_FIND_LINKS="$links"
    [ -z "$certificates" ] || export SSL_CERT_FILE="$certificates"
    # As pip does, the best version of all sources is taken, and modules are compiled.
    UV_CONSTRAINT=${PIP_CONSTRAINT:-} UV_BUILD_CONSTRAINT=${PIP_BUILD_CONSTRAINT:-} \
        "$tools/bin/uv" pip install --quiet --python "$python" --index-strategy unsafe-best-match --compile-bytecode "$@"
}

by_uv "$@" 2>/dev/null || exec "$python" -m pip install -qq --disable-pip-version-check "$@"
