#include "streams.hpp"

#include "inputs.hpp"

#include <algorithm>
#include <stdexcept>

std::vector<Array> makeChunks(const Bytes& file, const nlohmann::json& tensor) {
  const nlohmann::json& how = tensor.at("preprocessing");
  if (how.is_null() || how.at("kind") != "sound") return {makeInput(file, tensor)};
  if (how.at("samples").is_null())
    throw std::runtime_error("manifest.json has no chunk length for '" + tensor.at("name").get<std::string>() +
                             "' (samples is null): set it in the task, and build again.");
  const std::size_t length = how.at("samples");
  nlohmann::json endless = tensor;
  endless["preprocessing"]["samples"] = nullptr;
  const Array whole = makeInput(file, endless);
  std::vector<std::int64_t> shape = whole.shape;
  shape.back() = static_cast<std::int64_t>(length);
  const std::size_t count = std::max<std::size_t>(1, (whole.size() + length - 1) / length);
  std::vector<Array> chunks(count, makeArray(*whole.type, shape));
  for (std::size_t at = 0; at < whole.bytes.size(); at++) {
    const std::size_t chunk = chunks.front().bytes.size();
    chunks[at / chunk].bytes[at % chunk] = whole.bytes[at];
  }
  return chunks;
}

Array firstState(const nlohmann::json& state) {
  const std::string start = "The state '" + state.at("name").get<std::string>() + "' ";
  const std::string end = ": give its first value to runModel yourself.";
  if (state.at("begins_with_zeros") != true) throw std::runtime_error(start + "does not begin with zeros" + end);
  std::vector<std::int64_t> shape;
  for (const nlohmann::json& size : state.at("shape")) {
    if (!size.is_number() && size != "batch") throw std::runtime_error(start + "has no fixed size" + end);
    shape.push_back(size.is_number() ? size.get<std::int64_t>() : 1);
  }
  return makeArray(typeNamed(state.at("dtype")), shape);
}

bool isNextState(const nlohmann::json& manifest, const std::string& output) {
  const nlohmann::json& inputs = manifest.at("inputs");
  return std::any_of(inputs.begin(), inputs.end(),
                     [&](const nlohmann::json& input) { return input.at("next_value") == output; });
}
