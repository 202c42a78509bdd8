// Images by Replicate's own client: npm install replicate.
import Replicate from "replicate";

const address = process.argv[2] ?? "http://127.0.0.1:8000";
const name = process.argv[3] ?? "mnist";
const client = new Replicate({ auth: "none", baseUrl: address });
let prediction = await client.predictions.create({ version: name, input: { num_outputs: 3, class_labels: 5, seed: 1 } });
prediction = await client.wait(prediction, { interval: 100 });
console.log(`${prediction.status}: ${prediction.output.length} images`);
