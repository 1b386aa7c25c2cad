#!/usr/bin/env bash
# Sets up .venv where it is missing, then lints, type-checks and tests. Arguments go to pytest; without any, all
# tests run in a few processes, the tests of a file mostly in the same one, since they share what is made once.
set -euo pipefail
source "$(dirname "$0")/venv.sh"

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
[ $# -gt 0 ] || set -- --numprocesses=auto --maxprocesses=4 --dist=worksteal
"$python" -m pytest "$@"
