# syntax=docker/dockerfile:1
# Build: a wheel and its dependencies in a virtual environment. Run: that environment, one unprivileged user, no compiler.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/landbridge
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY filters filters
RUN /opt/landbridge/bin/pip install --no-cache-dir --disable-pip-version-check .

FROM python:3.13-slim
LABEL org.opencontainers.image.title="landbridge" \
      org.opencontainers.image.description="A region-aware routing gateway" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin landbridge \
 && install -d -o landbridge -g landbridge -m 0700 /var/lib/landbridge
COPY --from=build /opt/landbridge /opt/landbridge
COPY config /etc/landbridge
ENV PATH=/opt/landbridge/bin:$PATH PYTHONUNBUFFERED=1 LANDBRIDGE_CONFIG=/etc/landbridge/gateway.yaml
USER landbridge
VOLUME /var/lib/landbridge
# 8080 clients, 8082 other regions' gateways (never public). The admin API on 8081 is on loopback.
EXPOSE 8080 8082
# Liveness, not readiness: a gateway that waits for its map must not be restarted. listen.admin is on loopback.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/healthz', timeout=2)"]
# SIGTERM drains (drain.limit, 25 s by default): give it that long, as Kubernetes and ECS do with their 30 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["landbridge"]
CMD ["serve"]
