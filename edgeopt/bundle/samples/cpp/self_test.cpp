// The self-test: does this machine, with this code, compute what the build computed?

#include "boxes.hpp"
#include "inputs.hpp"
#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace {

constexpr double DIFFERENT = std::numeric_limits<double>::infinity();

Array readArray(const Model& model, const nlohmann::json& entry) {
  Array array = makeArray(typeNamed(entry.at("dtype")), entry.at("shape"));
  const std::string name = entry.at("file");
  Bytes bytes = readFile(model.bundle / name);
  if (bytes.size() != array.bytes.size())
    throw std::runtime_error(name + " has " + std::to_string(bytes.size()) + " bytes; manifest.json says " +
                             std::to_string(array.bytes.size()) + ".");
  array.bytes = std::move(bytes);
  return array;
}

/** Returns the largest absolute difference, or the mean one; infinite if one is not a number. */
double difference(const Array& found, const Array& expected, bool isMean) {
  if (found.size() != expected.size()) return DIFFERENT;
  double largest = 0, sum = 0;
  for (std::size_t i = 0; i < found.size(); i++) {
    const double left = found[i], right = expected[i];
    const double apart = left == right ? 0 : std::fabs(left - right);  // equal infinities too
    if (std::isnan(apart)) return DIFFERENT;
    largest = std::max(largest, apart);
    sum += apart;
  }
  return isMean ? sum / std::max<std::size_t>(1, found.size()) : largest;
}

/** Returns the share of values that differ; 1 if the arrays are of another size or type. */
double differentShare(const Array& found, const Array& expected) {
  if (found.type != expected.type || found.size() != expected.size()) return 1;
  const std::size_t size = expected.type->size;
  std::size_t differing = 0;
  for (std::size_t at = 0; at < expected.bytes.size(); at += size)
    differing += !std::equal(&expected.bytes[at], &expected.bytes[at] + size, &found.bytes[at]);
  return static_cast<double>(differing) / std::max<std::size_t>(1, expected.size());
}

std::string offBy(const std::string& what, const nlohmann::json& entry, double apart, double allowed) {
  return what + " '" + entry.at("name").get<std::string>() + "' is off by " + textOf(apart, 3) + "; " +
         textOf(allowed, 3) + " is allowed";
}

const nlohmann::json& inputNamed(const nlohmann::json& manifest, const nlohmann::json& name) {
  for (const nlohmann::json& tensor : manifest.at("inputs"))
    if (tensor.at("name") == name) return tensor;
  throw std::runtime_error("manifest.json has golden files of '" + name.get<std::string>() + "', but no such input.");
}

/** Prepares the files of an entry, and compares the arrays with the expected one. */
void checkPreprocessing(const Model& model, const nlohmann::json& entry, const Array& expected,
                        std::vector<std::string>& mistakes) {
  const nlohmann::json& tensor = inputNamed(model.manifest, entry.at("name"));
  Array whole{expected.type, expected.shape, {}};
  for (const nlohmann::json& name : entry.at("raw")) {
    const Array one = makeInput(readFile(model.bundle / name.get<std::string>()), tensor);
    whole.type = one.type;
    whole.bytes.insert(whole.bytes.end(), one.bytes.begin(), one.bytes.end());
  }
  const bool isResized = entry.at("role") == "resized";
  const std::string what = isResized ? "resizing of" : "preprocessing of";
  const double apart = difference(whole, expected, isResized), allowed = entry.at("tolerance");
  if (!(apart <= allowed)) mistakes.push_back(offBy(what, entry, apart, allowed));
}

void checkOutput(const nlohmann::json& entry, const Array& found, const Array& expected,
                 std::vector<std::string>& mistakes) {
  const double ratio = entry.at("different_ratio");  // of whole numbers: a share of them may differ
  const double apart = ratio > 0 ? differentShare(found, expected) : difference(found, expected, false);
  const double allowed = ratio > 0 ? ratio : entry.at("tolerance").get<double>();
  if (!(apart <= allowed)) mistakes.push_back(offBy("output", entry, apart, allowed));
}

/** Compares the class of a sample of the golden inputs. */
void checkAnswer(const nlohmann::json& right, const Arrays& outputs, const nlohmann::json& labels,
                 std::vector<std::string>& mistakes) {
  const Array& scores = outputs.at(right.at("output"));
  const std::size_t sample = right.at("sample"), expected = right.at("class_index");
  const std::size_t classes = scores.shape.size() == 2 ? static_cast<std::size_t>(scores.shape[1]) : 0;
  if (classes == 0 || (sample + 1) * classes > scores.size()) {
    mistakes.push_back("sample " + std::to_string(sample) + " has no scores for classes");
    return;
  }
  const std::size_t index = largestOf(scores, sample * classes, classes);
  const auto nameOf = [](const nlohmann::json& label, std::size_t number) {
    return label.is_string() ? label.get<std::string>() : std::to_string(number);
  };
  const nlohmann::json label = index < labels.size() ? labels.at(index) : nlohmann::json();
  if (index != expected || (right.at("label").is_string() && label != right.at("label")))
    mistakes.push_back("sample " + std::to_string(sample) + " is '" + nameOf(right.at("label"), expected) + "', not '" +
                       nameOf(label, index) + "'");
}

}  // namespace

std::vector<std::string> findMistakes(Model& model) {
  const nlohmann::json& golden = model.manifest.at("golden");
  if (golden.empty()) return {};
  std::vector<std::string> mistakes;
  Arrays inputs;
  for (const nlohmann::json& entry : golden) {
    if (entry.at("role") == "output") continue;
    const Array expected = readArray(model, entry);
    if (entry.at("role") == "input") inputs.emplace(entry.at("name").get<std::string>(), expected);
    if (!entry.at("raw").empty()) checkPreprocessing(model, entry, expected, mistakes);
  }
  const Arrays outputs = runModel(model, inputs);
  for (const nlohmann::json& entry : golden)
    if (entry.at("role") == "output")
      checkOutput(entry, outputs.at(entry.at("name")), readArray(model, entry), mistakes);
  for (const nlohmann::json& right : model.manifest.at("answers"))
    if (right.at("box").is_null()) checkAnswer(right, outputs, model.manifest.at("labels"), mistakes);
  for (const std::string& mistake : findWrongBoxes(model.manifest, outputs)) mistakes.push_back(mistake);
  return mistakes;
}
