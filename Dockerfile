# unistep serve on a CPU: docker build -t unistep . && docker run -p 8000:8000 -e UNISTEP_TOKENS=... unistep
FROM python:3.11-slim AS build
COPY . /src
RUN python -m venv /opt/unistep \
    && /opt/unistep/bin/pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && /opt/unistep/bin/pip install --no-cache-dir '/src[serve]' \
    && find /opt/unistep -name __pycache__ -prune -exec rm -rf {} +

FROM python:3.11-slim
COPY --from=build /opt/unistep /opt/unistep
RUN useradd --system --create-home unistep
USER unistep
EXPOSE 8000
HEALTHCHECK CMD ["/opt/unistep/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["/opt/unistep/bin/unistep", "serve", "--host", "0.0.0.0"]
