# On the CPU:  docker build -t tessera . && docker run -p 8000:8000 tessera
# On a GPU, whose driver comes from the host:
#   docker build --target cuda -t tessera:cuda . && docker run --gpus all -p 8000:8000 tessera:cuda
# Nothing here needs BuildKit; builders that go through every stage want --target cpu for the first.
# tools/image-check builds both without Docker, and tries them.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

# What Tessera depends on, compiled from Cargo.toml and Cargo.lock alone: a layer that a change of
# the sources leaves in the cache.
FROM ${RUST_IMAGE} AS dependencies
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# Cargo wants every target that Cargo.toml names to be there.
RUN mkdir -p src tests/it tests/fuzz benches \
 && touch src/lib.rs tests/it/main.rs tests/fuzz/main.rs benches/kernels.rs benches/masks.rs \
 && echo 'fn main() {}' > src/main.rs \
 && cargo build --release --locked --bin tessera \
 && cargo clean --release --package tessera

FROM dependencies AS build
COPY . .
RUN cargo build --release --locked --bin tessera \
 && strip -o /tessera target/release/tessera \
 && rm -r target

FROM ${RUNTIME_IMAGE} AS cpu
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 # A numeric user of group 0, so that clusters which choose their own user id can write /data too.
 && mkdir -p /data/hf /data/kernels && chown -R 10001:0 /data && chmod -R g+rwX /data
COPY LICENSE /usr/share/doc/tessera/
COPY --from=build /tessera /usr/local/bin/tessera
LABEL org.opencontainers.image.title="Tessera" \
      org.opencontainers.image.description="A multi-adapter inference server" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 10001:0
ENV TESSERA_HOST=0.0.0.0 \
    TESSERA_PORT=8000 \
    TESSERA_KERNEL_CACHE=/data/kernels \
    HF_HOME=/data/hf
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
  CMD ["tessera", "healthcheck"]
ENTRYPOINT ["tessera"]
CMD ["serve"]

# NVRTC, which compiles the kernels at the first start, and cuBLASLt: the last of CUDA 12, for any
# driver of 12.4 or newer.
FROM ${RUNTIME_IMAGE} AS cuda-libraries
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-pip \
 && pip install --no-cache-dir --no-deps --target /cuda \
      nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cublas-cu12==12.9.2.10 \
 && cd /cuda/nvidia \
 && rm -r */include cublas/lib/libcublas.so.12 cublas/lib/libnvblas.so.12

FROM cpu AS cuda
COPY --from=cuda-libraries /cuda /opt/cuda
# What NVIDIA's container toolkit mounts of the host's driver.
ENV LD_LIBRARY_PATH=/opt/cuda/nvidia/cuda_nvrtc/lib:/opt/cuda/nvidia/cublas/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last target is the one that is built when none is named.
FROM cpu
