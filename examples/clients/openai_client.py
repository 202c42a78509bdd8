"""Images and an edit by OpenAI's own client: pip install openai."""

import base64
import json
import sys

from openai import OpenAI

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{address}/v1", api_key="none")
print([model.id for model in client.models.list()])

made = client.images.generate(prompt="3", n=2, size="256x256", extra_body={"steps": 2, "seed": 7})
for i, image in enumerate(made.data):
    with open(f"three-{i}.png", "wb") as file:
        file.write(base64.b64decode(image.b64_json))

with open("three-0.png", "rb") as picture:
    edited = client.images.edit(
        image=picture, prompt="3", n=2, extra_body={"options": json.dumps({"task": "inpaint", "mask": "lower"})}
    )
for i, image in enumerate(edited.data):
    with open(f"edited-{i}.png", "wb") as file:
        file.write(base64.b64decode(image.b64_json))
print(f"{len(made.data)} images, {len(edited.data)} edits")
