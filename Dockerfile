# One image for every part of Fallow: the command says which one a container is.
FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssl procps tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fallow \
    && install --directory --owner fallow /var/lib/fallow /results \
        /secrets/scheduler /secrets/site /secrets/agent /secrets/user

WORKDIR /opt/fallow
COPY pyproject.toml requirements.lock README.md ./
COPY protocol protocol
COPY scheduler scheduler
COPY agents agents
COPY runtime runtime
COPY fallow fallow
COPY bench bench
RUN pip install --no-cache-dir --constraint requirements.lock '.[agent,scheduler,runtime]'
COPY deploy/bootstrap /usr/local/bin/fallow-bootstrap
COPY examples /usr/local/share/fallow/examples

USER fallow
# tini reaps what an agent's raylet leaves behind, and passes SIGTERM on: to an agent that is its owner's reclaim.
ENTRYPOINT ["tini", "--", "fallow"]
CMD ["--help"]
