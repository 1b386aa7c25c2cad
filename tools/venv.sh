# Sourced by demo.sh and test.sh: creates .venv in the checkout if it is missing or outdated, and sets $python to
# its interpreter. PYTHON=/path/to/python chooses the base interpreter, VENV=DIR the environment's folder.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_supported() { # tensorflow-io has no release for 3.13; everything else has
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" && { echo "$PYTHON"; return; }
        echo "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1); vidpipe needs Python 3.10 to 3.13." >&2
        return 1
    fi
    local candidate first=""
    for candidate in python3 python python3.12 python3.11 python3.10 \
        "$HOME"/.pyenv/versions/3.1[0-2].*/bin/python python3.13 "$HOME"/.pyenv/versions/3.13.*/bin/python; do
        command -v "$candidate" >/dev/null || continue
        if is_supported "$candidate"; then
            [ -z "$first" ] || echo "$first is not supported: vidpipe needs Python 3.10 to 3.13. Using $candidate." >&2
            echo "$candidate"
            return
        fi
        [ -n "$first" ] || first="$candidate ($("$candidate" --version 2>&1))"
    done
    echo "vidpipe needs Python 3.10 to 3.13; found ${first:-none}. Install one, or give its path with PYTHON=." >&2
    return 1
}

venv="${VENV:-.venv}"
python="$venv/bin/python"
if [ ! -x "$python" ]; then
    base=$(find_python)
    echo "Creating $venv with $("$base" --version)." >&2
    "$base" -m venv "$venv"
fi
extras=io,test
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then
    extras=test
fi
if compgen -G '/dev/nvidia[0-9]*' >/dev/null || [ -e /usr/lib/wsl/lib/libcuda.so.1 ]; then
    extras=gpu,$extras # TensorFlow's CUDA libraries
fi
wanted="$extras $(sha256sum setup.cfg)"
if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
    [[ $extras = *io* ]] || echo "Python 3.13: tensorflow-io is left out, which has no release for it." >&2
    echo "Installing vidpipe[$extras] into $venv: a few minutes and 3 GB, once." >&2
    "$python" -m pip install --quiet --disable-pip-version-check --use-pep517 -e ".[$extras]"
    # opencv-python needs libGL, which a machine without a screen may lack; opencv-python-headless does not.
    if ! "$python" -c 'import cv2' 2>/dev/null; then
        version=$("$python" -m pip show opencv-python | sed -n 's/^Version: //p')
        echo "opencv-python does not load here (no libGL); using opencv-python-headless." >&2
        "$python" -m pip uninstall --quiet -y opencv-python
        "$python" -m pip install --quiet --disable-pip-version-check "opencv-python-headless==$version"
        "$python" -c 'import cv2'
    fi
    echo "$wanted" >"$venv/.installed"
fi
