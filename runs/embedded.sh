#!/usr/bin/env bash
# Reproduces the embedded model: data, training (resumes if it was stopped), figures and model card, installation.
# About an hour and a half of one modern core with bf16 matrix instructions, several without; 4 GB of memory.
#
#     runs/embedded.sh [--install]
#
# The text is the standard library of the Python that runs this: another Python version gives another model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

make .venv/dev.stamp
.venv/bin/codemill train pretrain runs/embedded.toml
.venv/bin/codemill train pretrain runs/embedded_2.toml
.venv/bin/python runs/embedded_report.py runs/out/embedded_2/model
if [ "${1:-}" = --install ]; then
  mkdir -p src/codemill/embedded
  cp runs/out/embedded_2/model/* src/codemill/embedded/
fi
