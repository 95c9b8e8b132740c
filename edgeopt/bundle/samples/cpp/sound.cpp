#include "inputs.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace {

constexpr double PI = 3.14159265358979323846;
constexpr int ZERO_CROSSINGS = 16;  // of the filter that resamples, on each side

/** A sound of one channel. */
struct Sound {
  std::uint32_t rate = 0;       // samples a second
  std::vector<double> samples;  // -1 to 1
};

/** Returns the mean of the channels of a .wav of 16 bits. */
Sound readSound(const Bytes& file) {
  std::uint32_t rate = 0, channels = 1, bits = 16;
  std::size_t start = 0, bytes = 0;  // of the samples in the file
  for (std::uint64_t at = 12; at + 8 <= file.size();) {
    const std::uint64_t size = readNumber(file, at + 4, 4, Endian::little);
    if (hasText(file, at, "fmt ")) {
      channels = readNumber(file, at + 10, 2, Endian::little);
      rate = readNumber(file, at + 12, 4, Endian::little);
      bits = readNumber(file, at + 22, 2, Endian::little);
    }
    if (hasText(file, at, "data")) {
      start = static_cast<std::size_t>(at + 8);
      bytes = static_cast<std::size_t>(std::min<std::uint64_t>(size, file.size() - start));
    }
    at += 8 + size + size % 2;
  }
  if (start == 0 || bits != 16 || channels == 0 || rate == 0) throw std::runtime_error("Give a .wav of 16 bits.");
  Sound sound{rate, std::vector<double>(bytes / 2 / channels)};
  for (std::size_t i = 0; i < sound.samples.size(); i++) {
    double sum = 0;
    for (std::size_t c = 0; c < channels; c++)
      sum += static_cast<std::int16_t>(readNumber(file, start + 2 * (i * channels + c), 2, Endian::little));
    sound.samples[i] = sum / channels / 32768;
  }
  return sound;
}

/** Returns one sample of a sound that gets another rate, without the frequencies that this rate cannot hold. */
double resampledAt(std::size_t index, const Sound& sound, std::uint32_t wanted) {
  const double kept = std::min(1.0, static_cast<double>(wanted) / sound.rate);  // of the frequencies
  const auto reach = static_cast<std::int64_t>(std::ceil(ZERO_CROSSINGS / kept));  // old samples on each side
  const std::uint64_t place = static_cast<std::uint64_t>(index) * sound.rate;
  const auto nearest = static_cast<std::int64_t>(place / wanted);
  const double rest = static_cast<double>(place % wanted) / wanted;
  double sum = 0, weights = 0;
  for (std::int64_t step = 1 - reach; step <= reach; step++) {
    const double apart = (step - rest) * kept;
    const double turn = std::cos(PI / 2 * std::min(1.0, std::fabs(apart) / ZERO_CROSSINGS));
    const double weight = turn * turn * (apart == 0 ? 1 : std::sin(PI * apart) / (PI * apart));
    const std::int64_t at = nearest + step;
    if (at >= 0 && at < static_cast<std::int64_t>(sound.samples.size())) sum += weight * sound.samples[at];
    weights += weight;
  }
  return sum / weights;
}

}  // namespace

Array prepareSound(const Bytes& file, const nlohmann::json& how, const nlohmann::json& tensor) {
  const Sound sound = readSound(file);
  const std::uint32_t rate = how.at("sample_rate");
  std::size_t count = sound.samples.size();
  if (sound.rate != rate) count = (static_cast<std::uint64_t>(count) * rate + sound.rate - 1) / sound.rate;
  const std::size_t length = how.at("samples").is_null() ? count : how.at("samples").get<std::size_t>();
  const bool inMiddle = how.at("align") == "middle";
  const std::size_t start = inMiddle && count > length ? (count - length) / 2 : 0;
  const std::size_t before = inMiddle && length > count ? (length - count) / 2 : 0;
  const std::string dtype = tensor.at("dtype");
  const bool isWhole = dtype.find("int") != std::string::npos;
  const double peak = how.at("peak");
  std::vector<std::int64_t> shape(tensor.at("shape").size(), 1);
  shape.back() = static_cast<std::int64_t>(length);
  Array values = makeArray(typeNamed(dtype), shape);
  for (std::size_t i = 0; i < std::min(length, count); i++) {
    const std::size_t at = start + i;
    const double value = peak * (sound.rate == rate ? sound.samples[at] : resampledAt(at, sound, rate));
    values.set(before + i, isWhole ? std::floor(value + 0.5) : value);
  }
  return values;
}
