#!/bin/sh
# Prints the path of a Python that can build and run Echelon: version 3.11 or newer, with the modules
# that make a virtual environment. PYTHON, when set, is the only candidate.
set -u

usable() {
    "$1" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' >/dev/null 2>&1 || return 1
    "$1" -c 'import venv, ensurepip' >/dev/null 2>&1
}

tried=""
for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3.14 python3 python}; do
    path=$(command -v "$candidate" 2>/dev/null) || continue
    if usable "$path"; then
        echo "$path"
        exit 0
    fi
    found=$("$path" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found="does not run"
    tried="$tried
  $path: $found"
done

{
    echo "no usable Python: Echelon needs Python 3.11 or newer with the modules venv and ensurepip."
    if [ -n "$tried" ]; then
        echo "Looked at:$tried"
        echo "A version that is new enough but listed here lacks venv or ensurepip (on Debian: apt install python3-venv)."
    else
        echo "Found none on the PATH."
    fi
    echo "Install one, or name it: make PYTHON=/path/to/python3.11 ..."
} >&2
exit 1
