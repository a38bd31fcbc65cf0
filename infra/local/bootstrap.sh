#!/bin/sh
# Makes .venv, the Python environment of this checkout. Needs nothing but a POSIX shell and either `uv` or
# Python 3.11-3.13 with venv. Quick when nothing has changed since the last time.
set -eu

UV_VERSION=0.13.9
MEGABYTES_NEEDED=1500

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

cd "$(dirname -- "$0")/../.."
folder=$PWD
# They would make uv build another environment than the one that the Makefile uses.
unset UV_PROJECT_ENVIRONMENT VIRTUAL_ENV PYTHONHOME

mkdir -p .local 2>/dev/null && [ -w .local ] && [ -w . ] ||
    fail "Not allowed to write to $folder; make it writable for $(id -un), or use a checkout of your own."

# The folder belongs to the stamp because an environment cannot be moved.
wanted="$folder $(cksum <uv.lock) $(cksum <pyproject.toml)"
if [ "$(cat .local/bootstrap.stamp 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

if [ ! -d .venv ]; then
    free=$(df -Pm . | awk 'NR == 2 { print $4 }')
    [ "${free:-$MEGABYTES_NEEDED}" -ge "$MEGABYTES_NEEDED" ] ||
        fail "The disk of $folder is full: $free MB are free, $MEGABYTES_NEEDED MB are needed."
fi

# A pyenv shim is on PATH even if its Python is not installed, and Debian's python3 may lack venv: try them.
find_python() {
    for name in python3.13 python3.12 python3.11 python3; do
        path=$(command -v "$name" 2>/dev/null) || continue
        if "$path" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            >/dev/null 2>&1; then
            printf '%s\n' "$path"
            return
        fi
    done
    return 1
}

if uv --version >/dev/null 2>&1; then
    set -- uv
elif python=$(find_python); then
    if [ "$(.local/uv/bin/uv --version 2>/dev/null | cut -d ' ' -f 2)" != "$UV_VERSION" ]; then
        echo "Fetching uv $UV_VERSION, which installs the Python packages ..."
        { "$python" -m venv --clear .local/uv &&
            .local/uv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"; } ||
            fail "Could not fetch uv $UV_VERSION; the reason stands above."
    fi
    set -- .local/uv/bin/uv
    # An environment that stands already keeps its Python.
    [ -d .venv ] || export UV_PYTHON="$python"
else
    fail "Relaydesk needs Python 3.11, 3.12 or 3.13 with venv, or uv; install one, for example: apt-get install python3 python3-venv"
fi

echo "Installing the Python packages into .venv ..."
"$@" sync --frozen || fail "Could not install the Python packages; the reason stands above."
printf '%s' "$wanted" >.local/bootstrap.stamp
