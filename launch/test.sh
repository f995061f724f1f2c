#!/usr/bin/env bash
# Installs the project with its test extra into .venv and runs the tests, two at a time; arguments go to pytest.
#
#   bash launch/test.sh [--dry-run] [PYTEST ARGUMENTS]      e.g. -m slow, or tests/test_recursion.py
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh

run=""
case "${1:-}" in
  --dry-run) run="echo"; shift ;;
  -h|--help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
esac
$run setup_environment "[test]"
$run .venv/bin/python -m pytest -n 2 --dist loadgroup "$@"
