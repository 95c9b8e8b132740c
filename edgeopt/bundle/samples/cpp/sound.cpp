#include "inputs.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace {

/** What is in a .wav of 16 bits. */
struct Sound {
  std::uint32_t rate = 0;  // samples a second
  std::uint32_t channels = 1;
  std::uint32_t bits = 16;
  std::size_t start = 0;  // of the samples in the file; 0 if it has none
  std::size_t count = 0;  // of samples in each channel
};

Sound readHeader(const Bytes& file) {
  Sound sound;
  std::size_t bytes = 0;
  for (std::uint64_t at = 12; at + 8 <= file.size();) {
    const std::uint64_t size = readNumber(file, at + 4, 4, Endian::little);
    if (hasText(file, at, "fmt ")) {
      sound.channels = readNumber(file, at + 10, 2, Endian::little);
      sound.rate = readNumber(file, at + 12, 4, Endian::little);
      sound.bits = readNumber(file, at + 22, 2, Endian::little);
    }
    if (hasText(file, at, "data")) {
      sound.start = static_cast<std::size_t>(at + 8);
      bytes = static_cast<std::size_t>(std::min<std::uint64_t>(size, file.size() - sound.start));
    }
    at += 8 + size + size % 2;
  }
  if (sound.start == 0 || sound.bits != 16 || sound.channels == 0) throw std::runtime_error("Give a .wav of 16 bits.");
  sound.count = bytes / 2 / sound.channels;
  return sound;
}

}  // namespace

Array prepareSound(const Bytes& file, const nlohmann::json& how, const nlohmann::json& tensor) {
  const Sound sound = readHeader(file);
  const std::uint32_t rate = how.at("sample_rate");
  if (sound.rate != rate)
    throw std::runtime_error("The sound has " + std::to_string(sound.rate) + " samples a second; resample it to " +
                             std::to_string(rate) + " first.");
  const std::size_t length = how.at("samples").is_null() ? sound.count : how.at("samples").get<std::size_t>();
  const bool inMiddle = how.at("align") == "middle";
  const std::size_t start = inMiddle && sound.count > length ? (sound.count - length) / 2 : 0;
  const std::size_t before = inMiddle && length > sound.count ? (length - sound.count) / 2 : 0;
  const std::string dtype = tensor.at("dtype");
  const bool isWhole = dtype.find("int") != std::string::npos;
  const double peak = how.at("peak");
  std::vector<std::int64_t> shape(tensor.at("shape").size(), 1);
  shape.back() = static_cast<std::int64_t>(length);
  Array values = makeArray(typeNamed(dtype), shape);
  for (std::size_t i = 0; i < std::min(length, sound.count); i++) {
    double sum = 0;
    for (std::size_t c = 0; c < sound.channels; c++) {
      const std::size_t place = sound.start + 2 * ((start + i) * sound.channels + c);
      sum += static_cast<std::int16_t>(readNumber(file, place, 2, Endian::little));
    }
    const double value = sum / sound.channels / 32768 * peak;
    values.set(before + i, isWhole ? std::floor(value + 0.5) : value);
  }
  return values;
}
