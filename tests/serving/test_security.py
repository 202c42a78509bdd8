import pytest

from unistep.errors import UserError
from unistep.serving.security import Access
from unistep.serving.serve import named_places
from unistep.serving.serve import serve as serve_models

TOKEN = "0123456789abcdef-token"
LOCAL = {"hosts": ("testserver",), "local": True}
GENERATIONS = "/v1/images/generations"


def test_a_token_is_needed_where_there_are_some(serve):
    client = serve(Access(tokens=(TOKEN, "x" * 20), **LOCAL))
    assert client.get("/v1/models").status_code == 401
    for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Token {TOKEN}"):
        assert client.get("/v1/models", headers={"Authorization": header}).status_code == 200
    for header in (TOKEN, "Bearer", "Bearer ", f"Bearer {TOKEN}x", "Bearer ä", f"Basic {TOKEN}"):
        answer = client.get("/v1/models", headers={"Authorization": header.encode()})
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "invalid_token"
    assert client.get("/livez").status_code == client.get("/").status_code == 200
    assert client.get("/metrics").status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "127.0.0.2"]
)
def test_other_names_are_not_answered(serve, host):
    answer = serve(Access()).get("/", headers={"Host": host})
    assert answer.status_code == 421 and answer.json()["error"]["type"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_local_names_are_answered(serve, host):
    assert serve(Access()).get("/livez", headers={"Host": host}).status_code == 200


def test_pages_of_other_origins_may_not_ask(client, serve):
    for origin in ("https://evil.example", "null", "http://testserver.evil.example"):
        answer = client.post(GENERATIONS, json={}, headers={"Origin": origin})
        assert answer.status_code == 403
    assert client.post(GENERATIONS, json={}, headers={"Origin": "http://testserver"}).status_code == 200
    allowed = serve(Access(origins=("https://good.example",), **LOCAL))
    asked = allowed.options(
        GENERATIONS, headers={"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
    )
    assert asked.status_code == 204 and asked.headers["access-control-allow-origin"] == "https://good.example"
    answer = allowed.post(GENERATIONS, json={}, headers={"Origin": "https://good.example"})
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-origin" not in allowed.get("/livez", headers={"Origin": "https://x.example"}).headers


def test_large_and_deep_bodies_are_refused(serve):
    client = serve(max_body=2000)
    assert client.post(GENERATIONS, content=b'{"prompt": "' + b"x" * 3000 + b'"}').status_code == 413
    chunks = (b"x" * 500 for _ in range(10))
    assert client.post(GENERATIONS, content=chunks).status_code == 413
    for body in (b"[" * 1500, b'{"a":' * 300 + b"1" + b"}" * 300, b"\xff\xfe", b'{"n": NaN}', b"{", b"null", b"[1]"):
        answer = client.post(GENERATIONS, content=body)
        assert answer.status_code == 400, body[:20]


def test_rates_are_limited(serve):
    client = serve(rate=0.05)
    codes = [client.post("/v1/images/edits", data={"options": "{}"}).status_code for _ in range(5)]
    assert codes[:3] == [400, 400, 400] and codes[3:] == [429, 429]


def test_every_answer_has_the_headers(client):
    for path in ("/", "/livez", "/nothing", "/v1/models"):
        headers = client.get(path).headers
        assert (
            headers["x-content-type-options"] == "nosniff"
            and "default-src 'none'" in headers["content-security-policy"]
        )
        assert headers["x-request-id"]
    assert client.get("/livez", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/livez", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


@pytest.mark.parametrize(
    "path", ["/page/../serve.py", "/page/%2e%2e/serve.py", "/page/..%2fserve.py", "/files/../../etc/passwd"]
)
def test_no_file_besides_the_page_is_sent(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 404) and "unistep" not in answer.text.lower()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"host": "0.0.0.0"}, "token_file"),
        ({"port": 70_000}, "port"),
        ({"no_auth": True, "token_file": "short"}, "short"),
        ({"name": ["digits"]}, "digits=PATH"),
        ({"models": ["a/x", "b/x"]}, "two models"),
        ({"max_batch": 0}, "max_batch"),
    ],
)
def test_mistakes_at_the_start_are_told(given, words, tmp_path):
    if "token_file" in given:
        (tmp_path / "tokens").write_text("short\n")
        given = given | {"token_file": tmp_path / "tokens"}
    with pytest.raises(UserError, match=words):
        serve_models(**given)


def test_models_have_names():
    assert named_places([], []) == {"mnist": None}
    assert named_places(["runs/a/"], ["b=hub/c"]) == {"a": "runs/a/", "b": "hub/c"}
