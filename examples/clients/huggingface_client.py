"""An image by Hugging Face's own client: pip install huggingface_hub."""

import sys

from huggingface_hub import InferenceClient

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
name = sys.argv[2] if len(sys.argv) > 2 else "mnist"
client = InferenceClient(model=f"{address}/models/{name}")
image = client.text_to_image("7", num_inference_steps=2, seed=3)
image.save("seven.png")
print(f"seven.png: {image.size[0]}x{image.size[1]}")
