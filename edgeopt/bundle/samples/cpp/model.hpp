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

/** Returns the model's answer for the content of a file, as text. */
std::string answer(Model& model, const Bytes& file);

/** Compares preprocessing, outputs and answers with those of the build; returns what is wrong. */
std::vector<std::string> findMistakes(Model& model);

/** Returns the place of the largest of `count` values from `start`. */
std::size_t largestOf(const Array& scores, std::size_t start, std::size_t count);

/** Returns a number as text, with at most `digits` significant digits. */
std::string textOf(double number, int digits);
