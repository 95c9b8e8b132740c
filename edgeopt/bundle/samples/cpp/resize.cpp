// Bilinear resizing, and the three rules by which an image becomes one of the model's size.

#include "image.hpp"

#include <algorithm>
#include <cmath>

namespace {

/** For a new pixel: the first old one that it replaces, and the weights of that one and of those after it. */
struct Filter {
  int first;
  std::vector<double> weights;
};

/** Returns the filter of each new pixel: a triangle, as in Pillow. */
std::vector<Filter> filtersOf(int before, int after) {
  const double step = static_cast<double>(before) / after;
  const double support = std::max(1.0, step);
  std::vector<Filter> filters(after);
  for (int index = 0; index < after; index++) {
    const double center = (index + 0.5) * step;
    Filter& filter = filters[index];
    filter.first = std::max(0, static_cast<int>(std::floor(center - support)));
    const int last = std::min(before - 1, static_cast<int>(std::ceil(center + support)));
    double sum = 0;
    for (int old = filter.first; old <= last; old++) {
      filter.weights.push_back(std::max(0.0, 1 - std::fabs(old + 0.5 - center) / support));
      sum += filter.weights.back();
    }
    for (double& weight : filter.weights) weight /= sum;
  }
  return filters;
}

/** Returns the weighted sum of values that are `stride` bytes apart, as a whole level. */
unsigned char applyFilter(const Filter& filter, const unsigned char* from, std::size_t stride) {
  double sum = 0;
  for (std::size_t i = 0; i < filter.weights.size(); i++) sum += filter.weights[i] * from[i * stride];
  return static_cast<unsigned char>(std::floor(sum + 0.5));
}

/** Returns an image in another size: bilinear, over all pixels that one replaces. */
Image resizeImage(const Image& image, int newHeight, int newWidth) {
  if (image.height == newHeight && image.width == newWidth) return image;
  const std::size_t channels = image.channels, oldRow = image.width * channels, newRow = newWidth * channels;
  Bytes wide(image.height * newRow);
  const std::vector<Filter> columns = filtersOf(image.width, newWidth), rows = filtersOf(image.height, newHeight);
  for (int y = 0; y < image.height; y++)
    for (std::size_t i = 0; i < newRow; i++) {
      const Filter& filter = columns[i / channels];
      const unsigned char* from = &image.data[y * oldRow + filter.first * channels + i % channels];
      wide[y * newRow + i] = applyFilter(filter, from, channels);
    }
  Image whole{newHeight, newWidth, image.channels, Bytes(newHeight * newRow)};
  for (int y = 0; y < newHeight; y++)
    for (std::size_t i = 0; i < newRow; i++)
      whole.data[y * newRow + i] = applyFilter(rows[y], &wide[rows[y].first * newRow + i], newRow);
  return whole;
}

/** Returns the part of an image from (top, left); pixels outside of it are black. */
Image cutImage(const Image& image, int top, int left, int newHeight, int newWidth) {
  const std::size_t channels = image.channels;
  Image part{newHeight, newWidth, image.channels, Bytes(channels * newHeight * newWidth)};
  for (int y = std::max(0, -top); y < std::min(newHeight, image.height - top); y++)
    for (int x = std::max(0, -left); x < std::min(newWidth, image.width - left); x++) {
      const std::size_t oldY = y + top, oldX = x + left;
      const unsigned char* from = &image.data[(oldY * image.width + oldX) * channels];
      std::copy(from, from + channels, &part.data[(static_cast<std::size_t>(y) * newWidth + x) * channels]);
    }
  return part;
}

int roundHalfEven(double value) { return static_cast<int>(std::nearbyint(value)); }

}  // namespace

Fit fitOf(const ImageSize& size, const TargetSize& target) {
  const int height = target.height, width = target.width;
  const double oldHeight = size.height, oldWidth = size.width;
  if (height == 0) return {size.height, size.width, 0, 0};
  if (target.rule == "stretch") return {height, width, 0, 0};
  if (target.rule == "pad") {
    const double ratio = std::min(width / oldWidth, height / oldHeight);
    const int tall = std::max(1, roundHalfEven(oldHeight * ratio)), wide = std::max(1, roundHalfEven(oldWidth * ratio));
    return {tall, wide, -((height - tall) / 2), -((width - wide) / 2)};
  }
  int tall, wide;  // the rule is "crop": the shorter side decides
  if (oldHeight * width >= oldWidth * height) {
    wide = roundHalfEven(width / target.cropRatio);
    tall = static_cast<int>(wide * oldHeight / oldWidth);
  } else {
    tall = roundHalfEven(height / target.cropRatio);
    wide = static_cast<int>(tall * oldWidth / oldHeight);
  }
  return {tall, wide, roundHalfEven((tall - height) / 2.0), roundHalfEven((wide - width) / 2.0)};
}

Image resizeToFit(const Image& image, const TargetSize& target) {
  const Fit fit = fitOf({image.height, image.width}, target);
  const Image resized = resizeImage(image, fit.height, fit.width);
  return target.height == 0 ? resized : cutImage(resized, fit.top, fit.left, target.height, target.width);
}
