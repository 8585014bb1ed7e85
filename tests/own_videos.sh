#!/usr/bin/env bash
# From twelve clips to a policy trained with PPO, in an empty folder: what the README says under "Your own videos".
#
#   tests/own_videos.sh FOLDER
#
# PYTHON is the interpreter of the environment (default: .venv/bin/python of this checkout).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
rlaif() { "$python" -m rlaif "$@"; }
mine=$1

# Bring clips and rows, and a model to start from. (Here: colours that move, and a model of a million weights.)
"$python" "$root/tests/own_videos/make_files.py" "$mine" "$mine/model"

rlaif init "$mine" --model "$mine/model"
rlaif check "$mine/rlaif.yaml" > "$mine/check.txt" || { cat "$mine/check.txt"; exit 1; }
rlaif sft "$mine/rlaif.yaml"
rlaif reward "$mine/rlaif.yaml"
rlaif ppo "$mine/rlaif.yaml"
rlaif eval "$mine/rlaif.yaml"
