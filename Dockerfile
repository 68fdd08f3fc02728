# The image that every worker runs in: GDAL, numpy, boto3 and cloudpickle from the distribution, what the user asked
# for on top, and worker.py as its one process. scripts/build.sh builds it; `docker build .` gives the plain one.
#
# Versions are pinned by the release of BASE_IMAGE: its packages were built for one another.
ARG BASE_IMAGE=ubuntu:24.04
FROM ${BASE_IMAGE} AS distribution

# Debian packages to add, separated by spaces.
ARG EXTRA_PACKAGES=
# Left out is what no worker reads: manuals, numpy's tests, and the texts in botocore's descriptions of the services
# of AWS. They are three quarters of them, and are there for help() alone: every service works as before.
# hadolint ignore=DL3008,SC2086
RUN printf '%s\n' 'path-exclude /usr/share/doc/*' 'path-include /usr/share/doc/*/copyright' \
        'path-exclude /usr/share/man/*' 'path-exclude /usr/share/locale/*' >/etc/dpkg/dpkg.cfg.d/rios_awsbatch \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates python3-boto3 python3-cloudpickle python3-gdal python3-numpy ${EXTRA_PACKAGES} \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && find /usr/lib/python3/dist-packages/numpy -path '*/tests/*' -name 'test_*' -delete \
    && find /usr/lib/python3/dist-packages/botocore/data -name examples-1.json -delete \
    && python3 -B -c 'import json, pathlib; \
brief = lambda part: {key: "" if key == "documentation" and isinstance(value, str) else value \
                      for key, value in part.items()}; \
[file.write_text(json.dumps(json.loads(file.read_text(), object_hook=brief), separators=(",", ":"))) \
 for file in pathlib.Path("/usr/lib/python3/dist-packages/botocore/data").glob("*/*/service-2.json")]' \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin rios

# A stage of its own, since workers need no pip: packages of the Python Package Index to add, and a release of RIOS
# (X.Y.Z), which is not on that index.
FROM distribution AS pip
ARG PIP_PACKAGES=
ARG RIOS_VERSION=
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# GDAL was compiled for this numpy, and boto3 for this botocore: the constraint turns a package that needs others into
# an error of pip's here, rather than into a worker that cannot start. The last line is that worker's imports.
# hadolint ignore=DL3008,DL3013,SC2086
RUN set -f \
    && rios=${RIOS_VERSION:+https://github.com/ubarsc/rios/releases/download/rios-${RIOS_VERSION}/rios-${RIOS_VERSION}.tar.gz} \
    && if [ -n "${PIP_PACKAGES}${rios}" ]; then \
        apt-get update \
        && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-pip \
        && python3 -m pip freeze >/tmp/installed.txt \
        && grep -E '^(GDAL|numpy|boto3|botocore)==' /tmp/installed.txt >/tmp/constraints.txt \
        && python3 -m pip install --no-cache-dir --constraint /tmp/constraints.txt ${PIP_PACKAGES} ${rios}; fi \
    && python3 -B -c 'import boto3, cloudpickle; from osgeo import gdal_array'

FROM distribution
COPY --from=pip /usr/local /usr/local

# The modules, and the user's own beside them, are found from any folder: a main script imports them too. Log lines
# appear as they are written.
ENV PYTHONPATH=/opt/rios_awsbatch PYTHONUNBUFFERED=1
# For GPUs nothing is set: the agent of ECS says NVIDIA_VISIBLE_DEVICES, and where there is no NVIDIA_DRIVER_CAPABILITIES,
# NVIDIA's runtime gives compute and utility (its user guide, Driver capabilities).
# GDAL on S3: it tries again where S3 or a web server asks it to, and writes any format, by way of a file in /tmp. Its
# cache is 256 MB, since 5 % of the memory, its default, is that of the whole machine for some versions. It asks at once
# for all tiles of a window, up to 200 MB of them, instead of 10; and writes a file of up to 200 MB, instead of 50, with
# one request, of which nothing is left when the worker is killed. CPL_VSIL_SHOW_NETWORK_STATS=YES says what that saves,
# and that other settings (chunks, caches, folders not listed) save nothing more: docs/large-images.md.
ENV GDAL_HTTP_MAX_RETRY=5 GDAL_HTTP_RETRY_DELAY=1 CPL_VSIL_USE_TEMP_FILE_FOR_RANDOM_WRITE=YES \
    GDAL_CACHEMAX=256 GDAL_MAX_RAW_BLOCK_CACHE_SIZE=200000000 VSIS3_CHUNK_SIZE=200
COPY . /opt/rios_awsbatch/

ARG VERSION=unknown
LABEL org.opencontainers.image.title="rios_awsbatch" org.opencontainers.image.version="${VERSION}"
# Once, as workers may not write there: each would compile it twice.
RUN python3 -m compileall -q /opt/rios_awsbatch/rios_awsbatch.py

USER 10001
WORKDIR /home/rios
# The worker is process 1 and gets the signals of AWS Batch itself.
ENTRYPOINT ["python3", "/opt/rios_awsbatch/worker.py"]
