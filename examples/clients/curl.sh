#!/bin/sh
# Images, an edit and a prediction by curl: sh curl.sh [ADDRESS]
set -eu
address=${1:-http://127.0.0.1:8000}

curl -sSf "$address/v1/images/generations" -d '{"n": 1, "class_labels": 3, "steps": 2, "seed": 0}' |
    sed 's/.*"b64_json":"\([^"]*\)".*/\1/' | base64 -d > three.png

curl -sSf "$address/v1/images/edits" -F image=@three.png -F task=inpaint -F mask=lower -F class_labels=3 |
    sed 's/.*"b64_json":"\([^"]*\)".*/\1/' | base64 -d > edited.png

curl -sSf "$address/models/mnist" -d '{"inputs": "7"}' -o seven.png

curl -sSf "$address/predictions" -H 'Prefer: respond-async' -d '{"input": {"num_outputs": 8}}' > prediction.json
ls three.png edited.png seven.png prediction.json
