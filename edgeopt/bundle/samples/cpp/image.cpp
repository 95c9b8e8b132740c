#include "image.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>

#define STB_IMAGE_IMPLEMENTATION
#define STBI_NO_STDIO
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_ONLY_BMP
#define STBI_ONLY_GIF
#include <stb_image.h>

namespace {

/** Returns an image as its Exif orientation says. */
Image turnUpright(const Image& image, int orientation) {
  const bool isTurned = orientation >= 5;  // rows become columns
  const bool fromBottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const bool fromRight = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  Image upright = image;
  if (isTurned) std::swap(upright.height, upright.width);
  unsigned char* to = upright.data.data();
  for (int y = 0; y < upright.height; y++)
    for (int x = 0; x < upright.width; x++) {
      const int row = isTurned ? x : y, column = isTurned ? y : x;
      const std::size_t oldY = fromBottom ? image.height - 1 - row : row;
      const std::size_t oldX = fromRight ? image.width - 1 - column : column;
      const unsigned char* from = &image.data[(oldY * image.width + oldX) * image.channels];
      to = std::copy(from, from + image.channels, to);
    }
  return upright;
}

/** Returns an image of four channels as one of red, green and blue, or as a grey one. */
Image dropAlpha(const unsigned char* rgba, int height, int width, bool isGray) {
  const int channels = isGray ? 1 : 3;
  const std::size_t pixels = static_cast<std::size_t>(height) * width;
  Image image{height, width, channels, Bytes(pixels * channels)};
  for (std::size_t pixel = 0; pixel < pixels; pixel++) {
    const unsigned char* from = rgba + 4 * pixel;
    const int red = from[0], green = from[1], blue = from[2];
    if (from[3] != 255)
      throw std::runtime_error("The image is transparent: its colours are not certain. Save it without that.");
    if (isGray)  // ITU-R 601
      image.data[pixel] = static_cast<unsigned char>((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
    else
      std::copy(from, from + 3, &image.data[3 * pixel]);
  }
  return image;
}

}  // namespace

ImageSize sizeOf(const Bytes& file) {
  int width = 0, height = 0, channels = 0;
  stbi_info_from_memory(file.data(), static_cast<int>(file.size()), &width, &height, &channels);
  return orientationOf(file) < 5 ? ImageSize{height, width} : ImageSize{width, height};  // rows become columns
}

Image readImage(const Bytes& file, bool isGray) {
  int width, height, channels;
  stbi_uc* data = stbi_load_from_memory(file.data(), static_cast<int>(file.size()), &width, &height, &channels, 4);
  const std::unique_ptr<stbi_uc, void (*)(void*)> rgba(data, stbi_image_free);
  if (rgba == nullptr)
    throw std::runtime_error(std::string("Give a JPEG, PNG, BMP or GIF: this file cannot be read (") +
                             stbi_failure_reason() + ").");
  const Image image = dropAlpha(rgba.get(), height, width, isGray);
  const int orientation = orientationOf(file);
  return orientation == 1 ? image : turnUpright(image, orientation);
}
