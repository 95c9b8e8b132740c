// The class of each place of an output, such as each pixel of an image.
#pragma once

#include "array.hpp"

#include <nlohmann/json.hpp>

struct ClassMap {
  std::vector<std::size_t> classes;
  std::vector<std::int64_t> shape;  // of an image: height and width
};

/** Tells whether an output has scores for the classes of each place. `tensor` is its entry in the manifest. */
bool hasClassMap(const nlohmann::json& tensor, const Array& output);

/** Returns the best class of each place of the first sample. */
ClassMap makeClassMap(const nlohmann::json& tensor, const Array& output);

/** Returns the share of each class that occurs, the largest first, as text. */
std::string describeMap(const ClassMap& map, const nlohmann::json& labels);

/** Writes the class map of an image as a PGM, a grey image, of which each pixel is the number of a class. */
void writeMap(const std::filesystem::path& path, const ClassMap& map);
