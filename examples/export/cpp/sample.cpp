// ./sample digits.onnx 7 0 seven.png: image 0 of `unistep sample --seed 0 --class-labels 7`, without Python.
//
// digits.onnx is a sampler: unistep export mnist digits.onnx --steps 1.

#include <onnxruntime_cxx_api.h>

#include "png.hpp"
#include "random.hpp"

int main(int, char** argv) {
    Ort::Env env;
    Ort::Session session(env, argv[1], Ort::SessionOptions());
    const auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // batch, draws, C, H, W
    std::vector<int64_t> one = shape, single = {1};
    one[0] = 1;
    int32_t label = std::atoi(argv[2]);
    auto noise = unit_noise(image_seed(std::strtoull(argv[3], nullptr, 10), 0), shape[1], shape[2] * shape[3] * shape[4]);

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, noise.data(), noise.size(), one.data(), one.size()));
    inputs.push_back(Ort::Value::CreateTensor<int32_t>(memory, &label, 1, single.data(), 1));
    const char *names[] = {"noise", "class_labels"}, *result = "images";
    const size_t count = session.GetInputCount();  // a model without classes takes the noise alone
    auto images = session.Run(Ort::RunOptions(), names, inputs.data(), count, &result, 1);
    write_png(argv[4], images[0].GetTensorData<uint8_t>(), shape[4], shape[3], shape[2]);
}
