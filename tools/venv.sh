# Sourced by tools/run, tools/test and tools/check: makes .venv from a hash-pinned lock file, once for each of its contents.
# Needs Python >= 3.11 and nothing else; where Debian's venv module is missing, root installs it, others are told.

find_python() {
    for candidate in python3.11 python3 python3.12 python3.13; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "bridged needs Python 3.11 or newer; on Debian 12: apt-get install python3.11 python3.11-venv" >&2
    return 1
}

make_venv() {  # make_venv LOCK
    local lock=$1 python stamp
    python=$(find_python) || return 1
    stamp="$(cat "$lock" setup.cfg pyproject.toml | sha256sum | cut -c1-16)"
    if [ -x .venv/bin/python ] && grep -qx "$stamp" .venv/stamp 2>/dev/null; then
        return 0
    fi
    mkdir -p .cache
    exec 9>.cache/venv.lock
    flock 9
    if [ -x .venv/bin/python ] && grep -qx "$stamp" .venv/stamp 2>/dev/null; then
        return 0
    fi
    if [ ! -x .venv/bin/python ]; then
        if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
            if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
                echo "installing Debian's venv module ..." >&2
                { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-venv; } >/dev/null 2>&1 || true
            fi
            if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
                echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2
                return 1
            fi
        fi
        "$python" -m venv .venv
    fi
    echo "installing the pinned packages into .venv (once) ..." >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock" >&2 || return 1
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --config-settings editable_mode=compat -e . >&2 || return 1
    # a test environment is also a run environment: remember both stamps
    {
        echo "$stamp"
        [ "$lock" = tools/lock/test.txt ] && cat tools/lock/run.txt setup.cfg pyproject.toml | sha256sum | cut -c1-16
    } >.venv/stamp
    exec 9>&-
    return 0
}
