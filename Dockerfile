# The image that every worker runs in: GDAL, numpy, boto3 and cloudpickle from the distribution, what the user asked
# for on top, and worker.py as its one process. scripts/build.sh builds it; `docker build .` gives the plain one.
#
# Versions are pinned by the release of BASE_IMAGE: its packages were built for one another.
ARG BASE_IMAGE=ubuntu:24.04
FROM ${BASE_IMAGE}

# Debian packages to add, separated by spaces.
ARG EXTRA_PACKAGES=
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates python3-boto3 python3-cloudpickle python3-gdal python3-numpy python3-pip ${EXTRA_PACKAGES} \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin rios

# Packages of the Python Package Index to add, and a release of RIOS (X.Y.Z), which is not on that index.
ARG PIP_PACKAGES=
ARG RIOS_VERSION=
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# GDAL was compiled for this numpy, and boto3 for this botocore: the constraint turns a package that needs others into
# an error of pip's here, rather than into a worker that cannot start. The last line is that worker's imports.
# hadolint ignore=DL3013,SC2086
RUN set -f \
    && rios=${RIOS_VERSION:+https://github.com/ubarsc/rios/releases/download/rios-${RIOS_VERSION}/rios-${RIOS_VERSION}.tar.gz} \
    && python3 -m pip freeze >/tmp/installed.txt \
    && grep -E '^(GDAL|numpy|boto3|botocore)==' /tmp/installed.txt >/tmp/constraints.txt \
    && if [ -n "${PIP_PACKAGES}${rios}" ]; then \
        python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt ${PIP_PACKAGES} ${rios}; fi \
    && rm /tmp/installed.txt /tmp/constraints.txt \
    && python3 -B -c 'import boto3, cloudpickle; from osgeo import gdal_array'

# The modules, and the user's own beside them, are found from any folder: a main script imports them too.
# Log lines appear as they are written, and GDAL tries again where S3 or a web server asks it to.
ENV PYTHONPATH=/opt/rios_awsbatch PYTHONUNBUFFERED=1 GDAL_HTTP_MAX_RETRY=5 GDAL_HTTP_RETRY_DELAY=1
COPY . /opt/rios_awsbatch/

ARG VERSION=unknown
LABEL org.opencontainers.image.title="rios_awsbatch" org.opencontainers.image.version="${VERSION}"

USER 10001
WORKDIR /home/rios
# The worker is process 1 and gets the signals of AWS Batch itself.
ENTRYPOINT ["python3", "/opt/rios_awsbatch/worker.py"]
