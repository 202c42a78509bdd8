# unistep serve on a CPU: docker build -t unistep . && docker run -p 8000:8000 -e UNISTEP_TOKENS=... unistep
FROM python:3.11-slim AS build
COPY . /src
RUN python -m venv /opt/unistep
RUN /opt/unistep/bin/pip install --no-cache-dir --constraint /src/constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
RUN /opt/unistep/bin/pip install --no-cache-dir --constraint /src/constraints.txt '/src[serve]'
# Headers, static libraries and tests of torch are for those who build against it.
RUN rm -rf /opt/unistep/lib/python3.*/site-packages/torch/include /opt/unistep/lib/python3.*/site-packages/torch/test \
    && find /opt/unistep -name '*.a' -delete \
    && /opt/unistep/bin/pip uninstall --yes pip

FROM python:3.11-slim
COPY --from=build /opt/unistep /opt/unistep
RUN useradd --system --create-home unistep
USER unistep
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["/opt/unistep/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["/opt/unistep/bin/unistep", "serve", "--host", "0.0.0.0"]
