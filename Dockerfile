# On the CPU:  docker build -t tessera . && docker run -p 8000:8000 tessera
# On a GPU, whose image brings NVRTC and cuBLASLt (the driver comes from the host):
#   docker build --build-arg RUNTIME=nvidia/cuda:12.9.1-runtime-ubuntu24.04 -t tessera:cuda .
#   docker run --gpus all -p 8000:8000 tessera:cuda
ARG RUNTIME=debian:bookworm-slim
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Whole: cargo wants every target that Cargo.toml names to be there.
COPY . .
RUN cargo build --release --locked --bin tessera && strip target/release/tessera

FROM ${RUNTIME}
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 # A numeric user of group 0, so that clusters which choose their own user id can write /data too.
 && mkdir -p /data/hf /data/kernels && chown -R 10001:0 /data && chmod -R g+rwX /data
COPY --from=build /src/target/release/tessera /usr/local/bin/tessera
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
