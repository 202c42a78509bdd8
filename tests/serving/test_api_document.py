import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
PROGRAM = Path(sys.executable).with_name("schemathesis")


def test_the_document_has_every_refusal_in_one_shape(client):
    document = client.get("/openapi.json").json()
    assert "ValidationError" not in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            answers = operation["responses"]
            assert {"401", "405", "413", "421", "429"} <= set(answers), path
            assert method != "post" or {"400", "403", "404", "408", "503"} <= set(answers), path
            for status, answer in answers.items():
                if status.startswith(("4", "5")) and path != "/readyz":
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (path, status)


@pytest.mark.slow  # a minute
@pytest.mark.skipif(not PROGRAM.exists() and not shutil.which("schemathesis"), reason="schemathesis is not installed")
def test_schemathesis_finds_nothing(live, tmp_path):
    program = PROGRAM if PROGRAM.exists() else "schemathesis"
    words = [program, "run", f"{live.address}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", "20"]
    more = ["--max-response-time", "20", "--seed", "1", "--no-color", "--generation-database", "none"]
    done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "generated" in done.stdout
