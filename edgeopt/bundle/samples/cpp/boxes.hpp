// Boxes of a detector: read from its two maps as the manifest says, and moved back to the image.
#pragma once

#include "image.hpp"
#include "model.hpp"

#include <array>

struct Box {
  std::string label;
  double score;
  std::array<double, 4> corners;  // left, top, right and bottom, in pixels of the model's input or of the image
};

/** Returns the boxes of a sample, the highest score first, in pixels of the model's input. */
std::vector<Box> readBoxes(const nlohmann::json& manifest, const Arrays& outputs, std::size_t sample = 0);

/** Returns the corners of a box in the pixels of the image that was fitted to the model's input, and inside of it. */
std::array<double, 4> toImage(const Box& box, const ImageSize& size, const Fit& fit);

/** Returns one line for each box of the image in a file. */
std::string describeBoxes(const nlohmann::json& manifest, const Arrays& outputs, const Bytes& file);

/** Compares the boxes of the golden inputs: certain ones have to be found, and nothing that is no answer. */
std::vector<std::string> findWrongBoxes(const nlohmann::json& manifest, const Arrays& outputs);
