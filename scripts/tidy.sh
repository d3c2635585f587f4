#!/bin/bash
# Runs clang-tidy with the checks of .clang-tidy over all sources, or over the files named. Needs clang-tidy 14 and a
# configured release build (its compile_commands.json).
#   tidy.sh [FILE…]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -eq 0 ]; then
  mapfile -d '' files < <(find src tests examples bench -name '*.cc' -print0 2>/dev/null | sort -z)
  set -- "${files[@]}"
fi
printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" clang-tidy-14 -p build/release --quiet
