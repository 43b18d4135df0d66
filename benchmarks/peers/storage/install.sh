#!/bin/sh
# Create build/peers/lmcache and build/peers/aibrix, an environment for each system that run.py
# compares with. Run it from the repository's root. Needs Python 3.11, 3 GB of disk and a package
# index.
#
# Both systems are installed without their declared dependencies, most of which are for GPUs; what
# they import on a CPU is listed here. TORCH_INDEX names an index with a CPU build of torch, if the
# default index has none.
set -eu
mkdir -p build/peers

install_torch() {
    "$1" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
}

python3 -m venv build/peers/lmcache
pip=build/peers/lmcache/bin/pip
install_torch "$pip"
"$pip" install --quiet --no-deps lmcache==0.5.6
"$pip" install --quiet 'numpy<=2.2.6' aiofile aiofiles aiohttp blake3 cachetools cryptography \
    fastapi 'grpcio>=1.78.0' httptools httpx 'huggingface_hub>=1.5.0' \
    lmcache-rust-raw-block-io==0.5.7rc2 msgspec numba nvtx 'opentelemetry-api<=1.40.0' \
    opentelemetry-exporter-otlp 'opentelemetry-exporter-prometheus<=0.61b0' opentelemetry-sdk \
    'prometheus_client<=0.24.1' 'protobuf<7,>=6.31.1' psutil py-cpuinfo pyyaml pyzmq redis \
    safetensors sortedcontainers 'transformers>=5.4' uvicorn xxhash

python3 -m venv build/peers/aibrix
pip=build/peers/aibrix/bin/pip
install_torch "$pip"
"$pip" install --quiet --no-deps aibrix-kvcache==0.8.0
"$pip" install --quiet cityhash more-itertools msgspec netifaces numpy nvtx pydantic pyroscope-io \
    pyyaml redis==6.0.0 requests rocksdict sortedcontainers tqdm uvloop validators zstandard
