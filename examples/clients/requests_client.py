"""Images by plain HTTP: pip install requests."""

import base64
import sys

import requests

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
answer = requests.post(
    f"{address}/v1/images/generations", json={"n": 2, "class_labels": [3, 8], "steps": 2, "seed": 0}, timeout=60
)
answer.raise_for_status()
for i, image in enumerate(answer.json()["data"]):
    with open(f"digit-{i}.png", "wb") as file:
        file.write(base64.b64decode(image["b64_json"]))
    print(f"digit-{i}.png: class {image['class_label']}")
