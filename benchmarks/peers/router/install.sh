#!/bin/sh
# Create build/peers/router, the environment of the router that `python -m kvtier_bench router`
# compares `kvtier route` with. Run it from the repository's root. Needs Python 3.11 and a package
# index.
set -eu
mkdir -p build/peers
python3 -m venv build/peers/router
build/peers/router/bin/pip install --quiet vllm-router==0.1.17
