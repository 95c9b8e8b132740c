#include "class_map.hpp"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <stdexcept>

bool hasClassMap(const nlohmann::json& tensor, const Array& output) {
  return !tensor.at("class_axis").is_null() && output.shape.size() > 2;
}

ClassMap makeClassMap(const nlohmann::json& tensor, const Array& output) {
  const int given = tensor.at("class_axis"), dimensions = static_cast<int>(output.shape.size());
  const int axis = given < 0 ? given + dimensions : given;
  const std::size_t count = output.shape.at(axis);
  ClassMap map;
  std::size_t places = 1, inner = 1;
  for (int dimension = 1; dimension < dimensions; dimension++) {
    if (dimension == axis) continue;
    map.shape.push_back(output.shape[dimension]);
    places *= output.shape[dimension];
    if (dimension > axis) inner *= output.shape[dimension];
  }
  for (std::size_t place = 0; place < places; place++) {
    const std::size_t first = place / inner * count * inner + place % inner;
    std::size_t best = 0;
    for (std::size_t index = 1; index < count; index++)
      if (output[first + index * inner] > output[first + best * inner]) best = index;
    map.classes.push_back(best);
  }
  return map;
}

std::string describeMap(const ClassMap& map, const nlohmann::json& labels) {
  std::map<std::size_t, std::size_t> counts;
  for (const std::size_t index : map.classes) counts[index]++;
  std::vector<std::pair<std::size_t, std::size_t>> ranked(counts.begin(), counts.end());
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text;
  for (const auto& [index, count] : ranked) {
    char share[32];
    std::snprintf(share, sizeof share, "%.1f", 100.0 * count / map.classes.size());
    const std::string label = index < labels.size() ? labels.at(index).get<std::string>() : std::to_string(index);
    text += "\n" + label + ": " + share + " %";
  }
  return text;
}

void writeMap(const std::filesystem::path& path, const ClassMap& map) {
  if (std::any_of(map.classes.begin(), map.classes.end(), [](std::size_t index) { return index > 255; }))
    throw std::runtime_error("The class map has classes above 255, which a grey image of 8 bits cannot hold.");
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << map.shape.at(1) << " " << map.shape.at(0) << "\n255\n";
  for (const std::size_t index : map.classes) file.put(static_cast<char>(index));
  if (!file.flush()) throw std::runtime_error(path.string() + " cannot be written.");
}
