// Images of 8 bits a channel: how they are read, and brought to the size that the model takes.
#pragma once

#include "files.hpp"

struct Image {
  int height;
  int width;
  int channels;
  Bytes data;  // of shape (height, width, channels)
};

/** Returns the image in a file, upright: one channel if it is to be grey, otherwise red, green and blue. */
Image readImage(const Bytes& file, bool isGray);

/** Returns how an image has to be turned to be upright: 1 (not at all) to 8, as in Exif. */
int orientationOf(const Bytes& file);

struct ImageSize {
  int height;
  int width;
};

/** Returns the size of the image in a file, upright, without decoding it. */
ImageSize sizeOf(const Bytes& file);

/** The size that the model takes, and by which rule an image of another size becomes one of it. */
struct TargetSize {
  int height;  // 0, as the width: images keep their own size
  int width;
  std::string rule;  // "stretch", "pad" or "crop"
  double cropRatio;
};

/** The size to which an image is resized, and where the model's input begins in it. */
struct Fit {
  int height;
  int width;
  int top;
  int left;
};

/** Returns how an image of a size is fitted to the size that the model takes. */
Fit fitOf(const ImageSize& size, const TargetSize& target);

/** Returns an image in the size that the model takes. */
Image resizeToFit(const Image& image, const TargetSize& target);
