#include "boxes.hpp"

#include "inputs.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

namespace {

/** The values of one class of a heat-map; they are minus infinity outside of it. */
struct ClassHeat {
  const Array& array;
  std::size_t start;
  std::int64_t height, width;

  double at(std::int64_t row, std::int64_t column) const {
    const bool isInside = row >= 0 && column >= 0 && row < height && column < width;
    return isInside ? array[start + row * width + column] : -std::numeric_limits<double>::infinity();
  }

  /** Tells whether a value is a peak: of equal neighbours, the first counts. */
  bool isPeak(std::int64_t row, std::int64_t column) const {
    const double value = at(row, column);
    for (int number = 0; number < 9; number++) {
      const double neighbour = at(row + number / 3 - 1, column + number % 3 - 1);
      if (!(number < 4 ? value > neighbour : value >= neighbour)) return false;
    }
    return true;
  }
};

std::string rounded(double number, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, number);
  return text;
}

/** Returns left, top, right and bottom as text. */
std::string placeOf(const std::array<double, 4>& corners) {
  std::string text;
  for (const double corner : corners) text += (text.empty() ? "" : " ") + rounded(corner, 1);
  return text;
}

std::string labelOf(const nlohmann::json& answer) {
  const nlohmann::json& label = answer.at("label");
  return label.is_string() ? label.get<std::string>() : std::to_string(answer.at("class_index").get<std::size_t>());
}

/** Tells whether a box is that of an answer, within its tolerances. */
bool isSameBox(const nlohmann::json& answer, const Box& box) {
  const nlohmann::json& right = answer.at("box");
  double apart = 0;
  for (std::size_t side = 0; side < 4; side++)
    apart = std::max(apart, std::fabs(box.corners[side] - right.at("corners").at(side).get<double>()));
  return apart <= right.at("tolerance").get<double>() && box.label == labelOf(answer) &&
         std::fabs(box.score - right.at("score").get<double>()) <= right.at("score_tolerance").get<double>();
}

}  // namespace

std::vector<Box> readBoxes(const nlohmann::json& manifest, const Arrays& outputs, std::size_t sample) {
  const nlohmann::json &maps = manifest.at("boxes"), &labels = manifest.at("labels");
  const Array &heatmap = outputs.at(maps.at("heatmap")), &sides = outputs.at(maps.at("sides"));
  const std::int64_t classes = heatmap.shape.at(1), height = heatmap.shape.at(2), width = heatmap.shape.at(3);
  const std::size_t places = height * width;
  const double stride = maps.at("stride"), least = maps.at("min_score");
  const double low = maps.at("log_sides").at(0), high = maps.at("log_sides").at(1);
  std::vector<Box> boxes;
  for (std::int64_t index = 0; index < classes; index++) {
    const bool isNamed = static_cast<std::size_t>(index) < labels.size();
    const std::string label = isNamed ? labels.at(index).get<std::string>() : std::to_string(index);
    const ClassHeat heat{heatmap, (sample * classes + index) * places, height, width};
    for (std::int64_t row = 0; row < height; row++)
      for (std::int64_t column = 0; column < width; column++) {
        const double score = 1 / (1 + std::exp(-heat.at(row, column)));
        if (!(score >= least) || !heat.isPeak(row, column)) continue;
        const double x = (column + 0.5) * stride, y = (row + 0.5) * stride;
        const auto reach = [&](std::size_t side) {
          return stride * std::exp(std::clamp(sides[(sample * 4 + side) * places + row * width + column], low, high));
        };
        boxes.push_back({label, score, {x - reach(0), y - reach(1), x + reach(2), y + reach(3)}});
      }
  }
  std::stable_sort(boxes.begin(), boxes.end(), [](const Box& a, const Box& b) { return a.score > b.score; });
  boxes.resize(std::min(boxes.size(), maps.at("max_boxes").get<std::size_t>()));
  return boxes;
}

std::array<double, 4> toImage(const Box& box, const ImageSize& size, const Fit& fit) {
  std::array<double, 4> corners{};
  for (std::size_t side = 0; side < 4; side++) {
    const bool isVertical = side % 2 == 1;
    const int before = isVertical ? size.height : size.width, after = isVertical ? fit.height : fit.width;
    const double place = (box.corners[side] + (isVertical ? fit.top : fit.left)) * before / after;
    corners[side] = std::clamp(place, 0.0, static_cast<double>(before));
  }
  return corners;
}

std::string describeBoxes(const nlohmann::json& manifest, const Arrays& outputs, const Bytes& file) {
  const ImageSize size = sizeOf(file);
  Fit fit{};
  for (const nlohmann::json& tensor : manifest.at("inputs"))
    if (tensor.at("next_value").is_null()) fit = fitOf(size, targetOf(tensor.at("preprocessing")));
  std::string text;
  for (const Box& box : readBoxes(manifest, outputs))
    text += (text.empty() ? "" : "\n") + box.label + ": " + rounded(box.score, 3) + " at " +
            placeOf(toImage(box, size, fit));
  if (text.empty())
    text = "no boxes with a score of at least " + textOf(manifest.at("boxes").at("min_score"), 6);
  return text;
}

std::vector<std::string> findWrongBoxes(const nlohmann::json& manifest, const Arrays& outputs) {
  std::map<std::size_t, std::vector<nlohmann::json>> bySample;
  for (const nlohmann::json& answer : manifest.at("answers"))
    if (!answer.at("box").is_null()) bySample[answer.at("sample")].push_back(answer);
  std::vector<std::string> mistakes;
  for (const auto& [sample, answers] : bySample) {
    const std::vector<Box> found = readBoxes(manifest, outputs, sample);
    const std::string start = "sample " + std::to_string(sample) + " has ";
    for (const nlohmann::json& answer : answers) {
      const auto isIt = [&answer = answer](const Box& box) { return isSameBox(answer, box); };
      if (answer.at("box").at("is_certain").get<bool>() && std::none_of(found.begin(), found.end(), isIt))
        mistakes.push_back(start + "no '" + labelOf(answer) + "' at " + placeOf(answer.at("box").at("corners")));
    }
    for (const Box& box : found) {
      const auto isIt = [&box](const nlohmann::json& answer) { return isSameBox(answer, box); };
      if (std::none_of(answers.begin(), answers.end(), isIt))
        mistakes.push_back(start + "a '" + box.label + "' at " + placeOf(box.corners) +
                           " that the build has not found");
    }
  }
  return mistakes;
}
