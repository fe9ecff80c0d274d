# syntax=docker/dockerfile:1
# Two stages: the first fills a virtual environment from the lock file, the second has it and no build tools.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/event-bridge
COPY requirements.lock ./
RUN /opt/event-bridge/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
COPY sinks sinks
COPY config config
RUN /opt/event-bridge/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/event-bridge/bin/pip uninstall --yes setuptools wheel pip

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="event-bridge" \
      org.opencontainers.image.description="Event streams without replay, through a durable journal, to Kafka, MQTT and webhooks." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/event-bridge /opt/event-bridge
# The journal's directory belongs to the user that runs, so that a new named volume does, too.
RUN mkdir -p /var/lib/event-bridge && chown 65532:65532 /var/lib/event-bridge
ENV PATH=/opt/event-bridge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BRIDGE_JOURNAL__PATH=/var/lib/event-bridge/journal.db \
    BRIDGE_HTTP__LISTEN=0.0.0.0:9477
USER 65532:65532
VOLUME /var/lib/event-bridge
EXPOSE 9477
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["event-bridge", "health"]
ENTRYPOINT ["event-bridge"]
CMD ["run"]
