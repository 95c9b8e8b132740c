#include "inputs.hpp"

#include <stdexcept>

namespace {

/** Returns one number for each channel, of which the manifest may have one for all. */
std::vector<double> perChannel(const nlohmann::json& numbers, int channels) {
  const auto given = numbers.get<std::vector<double>>();
  std::vector<double> values;
  for (int channel = 0; channel < channels; channel++) values.push_back(given.at(given.size() == 1 ? 0 : channel));
  return values;
}

Array prepareImage(const Bytes& file, const nlohmann::json& how, const nlohmann::json& tensor) {
  const Image image = resizeToFit(readImage(file, how.at("color") == "gray"), targetOf(how));
  const int channels = image.channels;
  const bool areFirst = how.at("layout") == "nchw";  // the channels, before height and width
  const std::size_t pixels = static_cast<std::size_t>(image.height) * image.width;
  std::vector<std::int64_t> shape{1, image.height, image.width, channels};
  if (areFirst) shape = {1, channels, image.height, image.width};
  Array values = makeArray(typeNamed(tensor.at("dtype")), shape);
  const bool isReversed = how.at("color") == "bgr", isPlain = how.at("dtype") == "uint8";
  const double scale = how.at("scale");
  const std::vector<double> mean = perChannel(how.at("mean"), channels), std = perChannel(how.at("std"), channels);
  for (std::size_t pixel = 0; pixel < pixels; pixel++)
    for (int channel = 0; channel < channels; channel++) {
      const double byte = image.data[pixel * channels + (isReversed ? channels - 1 - channel : channel)];
      const std::size_t place = areFirst ? channel * pixels + pixel : pixel * channels + channel;
      values.set(place, isPlain ? byte : (byte / scale - mean[channel]) / std[channel]);
    }
  return values;
}

}  // namespace

TargetSize targetOf(const nlohmann::json& how) {
  if (how.at("height").is_null()) return {0, 0, how.at("resize"), how.at("crop_ratio")};
  return {how.at("height"), how.at("width"), how.at("resize"), how.at("crop_ratio")};
}

Array makeInput(const Bytes& file, const nlohmann::json& tensor) {
  const nlohmann::json& how = tensor.at("preprocessing");
  if (how.is_null())
    throw std::runtime_error("manifest.json has no preprocessing for '" + tensor.at("name").get<std::string>() +
                             "', so no file can be its input.");
  return how.at("kind") == "sound" ? prepareSound(file, how, tensor) : prepareImage(file, how, tensor);
}
