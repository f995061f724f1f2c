#!/usr/bin/env bash
# Installs the project with its test extra into .venv and runs the tests; arguments go to pytest.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]      e.g. -m slow, or tests/test_recursion.py
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh
setup_environment "[test]"
exec .venv/bin/python -m pytest "$@"
