// Finds in a JPEG or a PNG how a camera was held: Exif 2.32, tag 0x0112.

#include "image.hpp"

namespace {

constexpr std::uint32_t ORIENTATION_TAG = 0x0112;

/** Returns the orientation in the Exif data that begin at a place of a file: a TIFF, either endian. */
int orientationAt(const Bytes& file, std::uint64_t start) {
  const Endian endian = hasText(file, start, "MM") ? Endian::big : Endian::little;
  const std::uint64_t directory = start + readNumber(file, start + 4, 4, endian);
  const std::uint32_t entries = readNumber(file, directory, 2, endian);
  for (std::uint32_t index = 0; index < entries; index++) {
    const std::uint64_t entry = directory + 2 + 12 * index;
    if (readNumber(file, entry, 2, endian) != ORIENTATION_TAG) continue;
    const std::uint32_t orientation = readNumber(file, entry + 8, 2, endian);
    return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : 1;
  }
  return 1;
}

int orientationOfJpeg(const Bytes& file) {
  std::uint64_t at = 2;
  while (at + 4 <= file.size() && file[at] == 0xff && file[at + 1] != 0xda) {  // up to the start of the pixels
    if (file[at + 1] == 0xe1 && hasText(file, at + 4, {"Exif\0\0", 6})) return orientationAt(file, at + 10);
    at += 2 + readNumber(file, at + 2, 2, Endian::big);
  }
  return 1;
}

int orientationOfPng(const Bytes& file) {
  for (std::uint64_t at = 8; at + 8 <= file.size(); at += 12 + readNumber(file, at, 4, Endian::big))
    if (hasText(file, at + 4, "eXIf")) return orientationAt(file, at + 8);
  return 1;
}

}  // namespace

int orientationOf(const Bytes& file) {
  if (hasText(file, 0, "\xff\xd8")) return orientationOfJpeg(file);
  return hasText(file, 0, "\x89PNG") ? orientationOfPng(file) : 1;
}
