#!/bin/bash
# Installs what building needs (Debian 12 package names); does nothing, and needs no network, where all is there.
#   setup.sh [test]      with `test`, also what ./test needs
set -euo pipefail

packages=(g++ cmake ninja-build ccache libfmt-dev nlohmann-json3-dev libcli11-dev libonig-dev libutf8proc-dev
          libxxhash-dev libboost1.81-dev libssl-dev ca-certificates python3 python3-pip)
if [ "${1:-}" = test ]; then
  packages+=(libgtest-dev libgmock-dev clang-format-14 python3-dev python3-venv)
fi

if ! command -v dpkg-query >/dev/null; then
  echo "setup: not a Debian system; these packages, or your system's equivalents, must be installed: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: these packages are missing: ${missing[*]}" >&2
    echo "setup: as root, run: apt-get update && apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}" >&2
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q
     -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0)
"${apt[@]}" update >&2
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >&2
