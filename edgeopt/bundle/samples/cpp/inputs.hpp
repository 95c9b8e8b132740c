// From a file to an input of the model, as the manifest says.
#pragma once

#include "array.hpp"
#include "image.hpp"

#include <nlohmann/json.hpp>

/** Returns a file's content as the model's input: a batch of one sample. `tensor` is its entry in the manifest. */
Array makeInput(const Bytes& file, const nlohmann::json& tensor);

/** Returns the same of a .wav of 16 bits. */
Array prepareSound(const Bytes& file, const nlohmann::json& how, const nlohmann::json& tensor);

/** Returns the size that the model takes, from the preprocessing of an image. */
TargetSize targetOf(const nlohmann::json& how);
