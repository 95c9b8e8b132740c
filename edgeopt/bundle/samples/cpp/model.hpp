// The model of the bundle: what is known of it, and how it is run.
#pragma once

#include "array.hpp"

#include <nlohmann/json.hpp>

#include <map>

using Arrays = std::map<std::string, Array>;

struct Model {
  std::filesystem::path bundle;
  nlohmann::json manifest;
  Ort::Env env{nullptr};
  Ort::Session session{nullptr};
};

/** Loads the model of a bundle, with its weights in a second file if it has one. */
Model openModel(const std::filesystem::path& bundle);

/** Returns the outputs by name. */
Arrays runModel(Model& model, Arrays& inputs);

/** Returns the outputs for the content of a file; of a model with states, those after the last chunk. */
Arrays answer(Model& model, const Bytes& file);

/**
 * Returns the best classes of outputs with scores, the shares of the classes of maps, the boxes in the image of a file,
 * and the form of other outputs, without those that are states.
 */
std::string describe(const Arrays& outputs, const nlohmann::json& manifest, const Bytes& file);

/** Writes the class map of an image, if the model gives one, as a PGM: each pixel is the number of a class. */
void writeImageMap(const std::filesystem::path& path, const Arrays& outputs, const nlohmann::json& manifest);

/** Compares preprocessing, outputs and answers with those of the build; returns what is wrong. */
std::vector<std::string> findMistakes(Model& model);

/** Returns the place of the largest of `count` values from `start`. */
std::size_t largestOf(const Array& scores, std::size_t start, std::size_t count);

/** Returns a number as text, with at most `digits` significant digits. */
std::string textOf(double number, int digits);
