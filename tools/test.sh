#!/usr/bin/env bash
# Sets up .venv where it is missing, then lints, type-checks and tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/venv.sh"

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
"$python" -m pytest "$@"
