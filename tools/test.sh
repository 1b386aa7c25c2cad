#!/usr/bin/env bash
# Sets up .venv where it is missing, then lints, type-checks and tests.
#   tools/test.sh                   the fast tests of every package: minutes
#   tools/test.sh all               all tests, also those that start processes, browsers and servers
#   tools/test.sh PYTEST_ARGUMENTS  such as tests/data -k rotation
set -euo pipefail
source "$(dirname "$0")/venv.sh"

"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
parallel=(--numprocesses=auto --maxprocesses=4 --dist=worksteal)
case "${1:-}" in
    "") "$python" -m pytest "${parallel[@]}" -m "not slow" ;;
    all) "$python" -m pytest "${parallel[@]}" "${@:2}" ;;
    *) "$python" -m pytest "$@" ;;
esac
