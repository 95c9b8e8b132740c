#include "model.hpp"

#include "boxes.hpp"
#include "class_map.hpp"
#include "inputs.hpp"
#include "streams.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <stdexcept>

namespace {

constexpr std::size_t SHOWN_CLASSES = 3;

Array arrayOf(const Ort::Value& value, const std::string& name) {
  if (!value.IsTensor()) throw std::runtime_error("Output '" + name + "' is a list or a table, not an array.");
  const auto info = value.GetTensorTypeAndShapeInfo();
  Array array = makeArray(typeOf(info.GetElementType()), info.GetShape());
  const auto* data = static_cast<const unsigned char*>(value.GetTensorRawData());
  std::copy(data, data + array.bytes.size(), array.bytes.begin());
  return array;
}

/** Returns the best classes of the first sample, one a line. */
std::string describeScores(const Array& scores, const nlohmann::json& labels) {
  const std::size_t classes = std::min(scores.size(), static_cast<std::size_t>(scores.shape[1]));
  std::vector<std::size_t> ranked(classes);
  std::iota(ranked.begin(), ranked.end(), 0);
  std::stable_sort(ranked.begin(), ranked.end(), [&](std::size_t a, std::size_t b) {
    return std::isnan(scores[b]) ? !std::isnan(scores[a]) : scores[a] > scores[b];
  });
  ranked.resize(std::min(classes, SHOWN_CLASSES));
  std::string text;
  for (const std::size_t index : ranked) {
    const std::string label = index < labels.size() ? labels.at(index).get<std::string>() : std::to_string(index);
    text += (text.empty() ? "" : "\n") + label + ": " + textOf(scores[index], 4);
  }
  return text;
}

/** Repeats a sample if the batch of the model is fixed. */
Array makeBatch(const Array& one, const nlohmann::json& batch) {
  Array input = one;
  if (!batch.is_number()) return input;
  input.shape[0] = batch;
  for (std::int64_t i = 1; i < input.shape[0]; i++)
    input.bytes.insert(input.bytes.end(), one.bytes.begin(), one.bytes.end());
  return input;
}

std::string joined(const std::vector<std::int64_t>& sides, const std::string& separator) {
  std::string text;
  for (const std::int64_t side : sides) text += (text.empty() ? "" : separator) + std::to_string(side);
  return text;
}

std::string describeForm(const Array& array, const std::string& name) {
  return name + ": " + array.type->name + " [" + joined(array.shape, ",") + "]";
}

/** Returns what one output says, as text. */
std::string describeOutput(const Array& output, const nlohmann::json& tensor, const nlohmann::json& labels) {
  const std::string name = tensor.at("name");
  const nlohmann::json& axis = tensor.at("class_axis");
  if (hasClassMap(tensor, output)) {
    const ClassMap map = makeClassMap(tensor, output);
    return name + ": class map of " + joined(map.shape, "x") + describeMap(map, labels);
  }
  const bool hasScores = output.shape.size() == 2 && (axis == 1 || axis == -1);
  return hasScores ? describeScores(output, labels) : describeForm(output, name);
}

/** Tells whether an output is one of the two maps that give boxes. */
bool givesBoxes(const nlohmann::json& manifest, const nlohmann::json& name) {
  const nlohmann::json& maps = manifest.at("boxes");
  return !maps.is_null() && (maps.at("heatmap") == name || maps.at("sides") == name);
}

}  // namespace

Model openModel(const std::filesystem::path& bundle) {
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
    throw std::runtime_error(std::string("The library of ONNX Runtime is ") + OrtGetApiBase()->GetVersionString() +
                             ", older than the headers of 1." + std::to_string(ORT_API_VERSION) +
                             ": take both from one release.");
  const Bytes text = readFile(bundle / "manifest.json");
  Model model;
  model.bundle = bundle;
  model.manifest = nlohmann::json::parse(text.begin(), text.end());
  model.env = Ort::Env(ORT_LOGGING_LEVEL_ERROR, "edgeopt");
  model.session = Ort::Session(model.env, (bundle / "model.onnx").c_str(), Ort::SessionOptions());
  return model;
}

Arrays runModel(Model& model, Arrays& inputs) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  std::vector<const char*> inputNames, outputNames;
  std::vector<Ort::Value> values;
  for (auto& [name, array] : inputs) {
    inputNames.push_back(name.c_str());
    values.push_back(Ort::Value::CreateTensor(memory, array.bytes.data(), array.bytes.size(), array.shape.data(),
                                              array.shape.size(), array.type->code));
  }
  for (const nlohmann::json& tensor : model.manifest.at("outputs"))
    outputNames.push_back(tensor.at("name").get_ref<const std::string&>().c_str());
  const std::vector<Ort::Value> found = model.session.Run(Ort::RunOptions(), inputNames.data(), values.data(),
                                                          values.size(), outputNames.data(), outputNames.size());
  Arrays outputs;
  for (std::size_t i = 0; i < found.size(); i++) outputs.emplace(outputNames[i], arrayOf(found[i], outputNames[i]));
  return outputs;
}

Arrays answer(Model& model, const Bytes& file) {
  std::vector<nlohmann::json> states, others;
  for (const nlohmann::json& tensor : model.manifest.at("inputs"))
    (tensor.at("next_value").is_null() ? others : states).push_back(tensor);
  if (others.size() != 1)
    throw std::runtime_error("The model takes several inputs: make them as manifest.json says, and call runModel.");
  const nlohmann::json& tensor = others.front();
  Arrays inputs, outputs;
  for (const nlohmann::json& state : states) inputs.insert_or_assign(state.at("name"), firstState(state));
  const std::vector<Array> chunks = states.empty() ? std::vector{makeInput(file, tensor)} : makeChunks(file, tensor);
  for (const Array& chunk : chunks) {
    inputs.insert_or_assign(tensor.at("name"), makeBatch(chunk, tensor.at("shape").at(0)));
    outputs = runModel(model, inputs);
    for (const nlohmann::json& state : states)
      inputs.insert_or_assign(state.at("name"), outputs.at(state.at("next_value")));
  }
  return outputs;
}

std::string describe(const Arrays& outputs, const nlohmann::json& manifest, const Bytes& file) {
  std::string text;
  for (const nlohmann::json& tensor : manifest.at("outputs")) {
    if (isNextState(manifest, tensor.at("name")) || givesBoxes(manifest, tensor.at("name"))) continue;
    if (!text.empty()) text += "\n";
    text += describeOutput(outputs.at(tensor.at("name")), tensor, manifest.at("labels"));
  }
  if (manifest.at("boxes").is_null()) return text;
  return text + (text.empty() ? "" : "\n") + describeBoxes(manifest, outputs, file);
}

void writeImageMap(const std::filesystem::path& path, const Arrays& outputs, const nlohmann::json& manifest) {
  for (const nlohmann::json& tensor : manifest.at("outputs")) {
    const Array& output = outputs.at(tensor.at("name"));
    if (hasClassMap(tensor, output) && output.shape.size() == 4) return writeMap(path, makeClassMap(tensor, output));
  }
  throw std::runtime_error("The model gives no class map of an image, so there is none to write.");
}

std::size_t largestOf(const Array& scores, std::size_t start, std::size_t count) {
  std::size_t best = 0;
  for (std::size_t index = 1; index < count; index++)
    if (scores[start + index] > scores[start + best]) best = index;
  return best;
}

std::string textOf(double number, int digits) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*g", digits, number);
  return text;
}
