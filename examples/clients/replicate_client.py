"""Images by Replicate's own client: pip install replicate."""

import sys

import replicate

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
name = sys.argv[2] if len(sys.argv) > 2 else "mnist"
client = replicate.Client(api_token="none", base_url=address)
prediction = client.predictions.create(version=name, input={"num_outputs": 3, "class_labels": 5, "seed": 1})
prediction.wait()
print(f"{prediction.status}: {len(prediction.output)} images")
